"""What pyproject.toml cannot say: the folder `recipes` of the checkout becomes a part of the installed package."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithRecipes(build_py):
    """The package and the recipes; an editable install reads them where they are."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for source, target in self.recipes().items():
                self.mkpath(str(Path(target).parent))
                self.copy_file(source, target)

    def recipes(self) -> dict[str, str]:
        """Where every recipe is copied to."""
        inside = Path(self.build_lib) / "unlabeled"
        return {str(file): str(inside / file) for file in sorted(Path("recipes").rglob("*.yaml"))}

    def get_source_files(self) -> list[str]:
        return [*super().get_source_files(), *self.recipes()]


setup(cmdclass={"build_py": BuildWithRecipes})
