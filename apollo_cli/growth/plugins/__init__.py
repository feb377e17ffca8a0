"""Your own samplers and expanders: every module here is imported and registers its methods."""

from importlib import import_module
from pkgutil import iter_modules

from apollo_cli.errors import NameTakenError

BROKEN: list[str] = []  # a sentence for each module that cannot be imported; only who asks for its method needs it
TAKEN: dict[str, str] = {}  # those of them whose method has the name of another one, by the option that chooses it

for _module in iter_modules(__path__):
    try:
        import_module(f"{__name__}.{_module.name}")
    except Exception as error:
        # no builtin: a module `type.py` is a name of this one
        _reason = f"{error.__class__.__name__}: {error}".splitlines()[0]
        BROKEN.append(f"growth/plugins/{_module.name}.py cannot be imported: {_reason}")
        if isinstance(error, NameTakenError):
            TAKEN[error.option] = BROKEN[-1]
