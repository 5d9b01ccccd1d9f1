"""Helpers that tests share: builders, a broker, pipelines, receivers, recounts."""

import pytest

# Assertions in these modules show the compared values, as those in test modules do.
for _module in (
    "late_scores",
    "metrics_http",
    "prometheus_page",
    "recount_checker",
    "recount_services",
    "recount_numbers",
    "rollup_streams",
):
    pytest.register_assert_rewrite(f"kit.{_module}")
