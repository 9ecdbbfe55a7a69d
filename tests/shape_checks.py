"""The runtime type checker of the suite: beartype, with ints accepted where floats are meant."""

from beartype import BeartypeConf, beartype

_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checked(function):
    """Check shapes wherever tensors pass; constructors explain bad values themselves."""
    return (
        function if function.__name__ in {"__init__", "check_single_arg"} else _beartype(function)
    )
