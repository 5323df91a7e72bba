"""The work of the commands that do much: `work/NAME.py` behind `commands/NAME.py`, which has the options alone, so that
`--help` imports neither torch nor timm."""
