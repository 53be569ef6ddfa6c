"""A filter of one's own, as a config names it: `type: tests.toy_filters:ShoutingFilterConfig`."""

from data.filters import FilterConfig


class ShoutingFilterConfig(FilterConfig):
    """Drops documents in capitals."""

    type: str = "tests.toy_filters:ShoutingFilterConfig"
    """Import path."""
    max_exclamations: int = 3
    """More: `shouting`."""

    def reason(self, text: str) -> str | None:
        """See `FilterConfig.reason`."""
        return "shouting" if text.count("!") > self.max_exclamations else None
