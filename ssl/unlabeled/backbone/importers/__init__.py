"""Official weights into our export format. A `.pth` is read with `weights_only=True`: a pickle in it never runs.

One file per family: which of its names belong to the encoder, which to heads that resume pretraining, which are
dropped, and how many attention heads its models have, which no weight shows.
"""

from __future__ import annotations

from pathlib import Path

from unlabeled.backbone.build import is_cnn
from unlabeled.backbone.encoder import Pool
from unlabeled.backbone.folder import IMAGENET, timm_config, write_export
from unlabeled.backbone.importers import dino, dinov2, ibot, mae, mocov3, simmim
from unlabeled.backbone.importing import Imported, Key, read_pth
from unlabeled.errors import UserError, first_line
from unlabeled.text import code

FAMILIES = {module.FAMILY.name: module for module in (mae, simmim, mocov3, dino, ibot, dinov2)}


def import_official(name: str, file: Path, out: Path, heads: int | None = None, key: Key | None = None) -> None:
    """Turn an official checkpoint into an export folder; what resumes pretraining, if any, into `heads.safetensors`."""
    family, imported = FAMILIES[name].FAMILY, read(name, file, heads, key)
    prepared = IMAGENET._replace(interpolation=family.interpolation, pool=pool_of(name, imported))
    config = timm_config(imported.architecture, imported.arguments, imported.width, prepared)
    card = (
        f"# {family.title}\n\nImported from the official checkpoint {code(file.name)} ({family.repository}). "
        "License: see there.\n"
    )
    write_export(out, imported.encoder, config, card, imported.heads)


def pool_of(name: str, imported: Imported) -> Pool:
    """How features of official weights are read: as the family's own code does, of a CNN by the mean."""
    return "mean" if is_cnn(imported.architecture) else FAMILIES[name].FAMILY.pool


def read(name: str, file: Path, heads: int | None = None, key: Key | None = None) -> Imported:
    """Read an official checkpoint, backbone or full.

    Args:
        name: the family, one of FAMILIES.
        file: a `.pth`.
        heads: attention heads of the encoder; None = the official number for its width.
        key: which of two networks; None = the one that its paper evaluates.

    Raises:
        UserError: it cannot be read safely, or holds something else than the family's models.
    """
    module = FAMILIES[name]
    if key is not None and key not in module.FAMILY.keys:
        raise UserError(f"{module.FAMILY.title} checkpoint holds no {key} of its own. Leave out --key.")
    if heads is not None and heads < 1:
        raise UserError(f"--heads {heads}: expected at least 1")
    checkpoint = read_pth(file)
    try:
        return module.convert(checkpoint, heads, key or module.FAMILY.default_key)
    except (AttributeError, LookupError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        # what `convert` asks of names and shapes is said above; what it takes for granted is not there either
        raise UserError(f"{file} is not {module.FAMILY.title}: {type(error).__name__}: {first_line(error)}") from error


__all__ = ["FAMILIES", "Imported", "import_official", "pool_of", "read"]
