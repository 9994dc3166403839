"""hypothesis where it is installed; else its tests are skipped, with the reason, and all others still run."""

import pytest

try:
    from hypothesis import assume, given, settings
    from hypothesis import strategies as st
except ImportError:
    settings = assume = None

    class _Nothing:
        """Stands for strategies, which are built when a module is imported: any attribute, any call."""

        def __getattr__(self, name):
            return self

        def __call__(self, *args, **kwargs):
            return self

    st = _Nothing()

    def given(*args, **kwargs):
        def skipped(test):
            @pytest.mark.skip(reason="needs hypothesis: pip install hypothesis")
            def stand_in():
                """Takes no arguments: pytest would look for fixtures of their names."""

            stand_in.__name__ = test.__name__
            return stand_in

        return skipped


__all__ = ["assume", "given", "settings", "st"]
