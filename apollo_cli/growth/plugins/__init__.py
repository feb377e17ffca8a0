"""Your own samplers and expanders: every module here is imported and registers its methods."""

from importlib import import_module
from pkgutil import iter_modules

BROKEN: list[str] = []  # a sentence for each module that cannot be imported; only who asks for its method needs it

for _module in iter_modules(__path__):
    try:
        import_module(f"{__name__}.{_module.name}")
    except Exception as error:
        _reason = str(error).splitlines() or [""]
        BROKEN.append(f"growth/plugins/{_module.name}.py cannot be imported: {type(error).__name__}: {_reason[0]}")
