"""What a rule has measured at an instant, by instance."""

from __future__ import annotations

from tokentrace_alerter.rules.decide import NO_READING, Reading
from tokentrace_alerter.rules.schema import Rule

#: The name of the only instance of a rule that is not grouped.
WHOLE = ""
#: Instance -> reading.
Readings = dict[str, Reading]


def difference(rule: Rule, now: Readings, before: Readings) -> Readings:
    """Return the change of each instance since the window before; its value is None if it cannot be computed."""
    readings: Readings = {}
    for name in {*now, *before}:
        value, span_count, unpriced = now.get(name, NO_READING)
        old = before.get(name, NO_READING).value
        if value is None or old is None or (rule.change == "percent" and old == 0):
            readings[name] = Reading(None, span_count, unpriced)
        else:
            change = (value - old) / abs(old) * 100 if rule.change == "percent" else value - old
            readings[name] = Reading(change, span_count, unpriced)
    return readings
