"""Conversions of units, compared with ``Decimal`` and ``datetime``; values in error texts, and the errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from decimal import ROUND_HALF_EVEN, Decimal, localcontext

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tokentrace.errors import ConfigError, Rejected, TokentraceError, Unavailable, shorten
from tokentrace.units import (
    DAY,
    HOUR,
    MINUTE,
    MS,
    SECOND,
    US,
    int_to_score,
    is_number,
    ms_to_ns,
    ns_to_ms,
    nusd_to_usd,
    parse_duration,
    parse_instant,
    render_duration,
    render_instant,
    score_to_int,
    usd_to_nusd,
)

UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
UNITS["d"] = 24 * UNITS["h"]
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LONGEST = 2**63 - 1


def exactly(value: float | int | Decimal, scale: int) -> int:
    """Return *scale* times the decimal number that ``str`` writes for *value*, rounded half to even."""
    with localcontext() as context:
        context.prec = 800
        product = Decimal(str(value)) * scale
        return int(product.quantize(Decimal(1), rounding=ROUND_HALF_EVEN))


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("0", 0),
        ("0s", 0),
        ("1ns", 1),
        ("1us", US),
        ("1µs", US),
        ("1μs", US),
        ("500ms", 500 * MS),
        ("1.5s", 1_500 * MS),
        (".5s", 500 * MS),
        ("5.s", 5 * SECOND),
        ("90s", 90 * SECOND),
        ("2h30m", 2 * HOUR + 30 * MINUTE),
        ("30m2h", 2 * HOUR + 30 * MINUTE),
        ("7d", 7 * DAY),
        ("1d12h", DAY + 12 * HOUR),
        ("0.000000001s", 1),
        ("9223372036854775807ns", LONGEST),
        ("000001s", SECOND),
    ],
)
def test_a_duration_in_the_notation_of_go_or_in_days_is_parsed(text: str, ns: int) -> None:
    assert parse_duration(text) == ns


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "1",
        "s",
        ".",
        ".s",
        "1 s",
        " 1s",
        "1s ",
        "1s\n",
        "\n1s",
        "-1s",
        "+1s",
        "1e3s",
        "1,5s",
        "1S",
        "1H",
        "1w",
        "1M",
        "1y",
        "1sx",
        "x1s",
        "1s1",
        "1..5s",
        "1.5.5s",
        "1h-30m",
        "٣s",
        "１s",
        "0x1s",
        "NaN",
        "inf",
        "00",
        "1m s",
        "9223372036854775808ns",
        "106752d",
        "292.5y",
        "9" * 400 + "h",
    ],
)
def test_a_text_that_is_not_a_duration_is_rejected(text: str) -> None:
    with pytest.raises(Rejected, match="duration"):
        parse_duration(text)


def test_an_error_quotes_at_most_the_beginning_of_a_duration() -> None:
    with pytest.raises(Rejected) as caught:
        parse_duration("hunter2" * 100)
    assert "hunter2" in str(caught.value)
    assert len(str(caught.value)) < 120


part = st.tuples(st.integers(0, 10**6), st.integers(0, 10**9), st.sampled_from(sorted(UNITS)))


@given(st.lists(part, min_size=1, max_size=5))
def test_a_duration_is_the_exact_sum_of_its_parts(parts: list[tuple[int, int, str]]) -> None:
    text = "".join(f"{whole}.{fraction:09d}{unit}" for whole, fraction, unit in parts)
    with localcontext() as context:
        context.prec = 100
        want = sum((Decimal(f"{whole}.{fraction:09d}") * UNITS[unit] for whole, fraction, unit in parts), Decimal(0))
    if want > LONGEST:
        with pytest.raises(Rejected):
            parse_duration(text)
    else:
        assert parse_duration(text) == int(want)


@given(st.integers(0, LONGEST))
@example(0)
@example(1)
@example(LONGEST)
def test_a_rendered_duration_parses_to_the_same_nanoseconds(ns: int) -> None:
    assert parse_duration(render_duration(ns)) == ns


@pytest.mark.parametrize(
    ("ns", "text"),
    [(0, "0s"), (90 * MINUTE, "1h30m"), (1500 * MS, "1s500ms"), (DAY, "1d"), (36 * HOUR, "1d12h"), (1, "1ns")],
)
def test_a_rendered_duration_begins_with_its_largest_unit(ns: int, text: str) -> None:
    assert render_duration(ns) == text


@given(st.text(alphabet="0123456789.hmsnuµd -+e\n", max_size=12))
def test_any_text_parses_as_a_duration_or_is_rejected(text: str) -> None:
    try:
        assert 0 <= parse_duration(text) <= LONGEST
    except Rejected:
        pass


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2026-03-15T14:23:01.441Z", 1_773_584_581_441_000_000),
        ("2026-03-15t14:23:01.441z", 1_773_584_581_441_000_000),
        ("2026-03-15 14:23:01.441Z", 1_773_584_581_441_000_000),
        ("2026-03-15T15:23:01.441+01:00", 1_773_584_581_441_000_000),
        ("2026-03-15T05:53:01.441-08:30", 1_773_584_581_441_000_000),
        ("2026-03-15T14:23:01.441000001Z", 1_773_584_581_441_000_001),
        ("2026-03-15T14:23:01.4410000019999Z", 1_773_584_581_441_000_001),
        ("2026-03-15T14:23:01-00:00", 1_773_584_581_000_000_000),
        ("2016-12-31T23:59:60Z", 1_483_228_800_000_000_000),
        ("2024-02-29T00:00:00Z", 1_709_164_800_000_000_000),
        ("1969-12-31T23:59:59.999999999Z", -1),
    ],
)
def test_an_rfc_3339_instant_is_parsed(text: str, ns: int) -> None:
    assert parse_instant(text) == ns


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "2026-03-15",
        "2026-03-15T14:23:01",
        "2026-03-15T14:23Z",
        "2026-03-15T14:23:01.Z",
        "2026-03-15T14:23:01,5Z",
        "2026-3-15T14:23:01Z",
        "2026-13-01T00:00:00Z",
        "2026-02-29T00:00:00Z",
        "2026-02-30T00:00:00Z",
        "2026-01-01T24:00:00Z",
        "2026-01-01T00:60:00Z",
        "2026-01-01T00:00:61Z",
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+11:40",
        "9999-12-31T23:59:59-01:00",
        "2026-01-01T00:00:00+0100",
        "2026-01-01T00:00:00+01",
        "2026-01-01T00:00:00Z ",
        "2026-01-01T00:00:00Z\n",
        " 2026-01-01T00:00:00Z",
        "+2026-01-01T00:00:00Z",
        "٢٠٢٦-01-01T00:00:00Z",
        "1773584581",
    ],
)
def test_a_text_that_is_not_an_instant_is_rejected(text: str) -> None:
    with pytest.raises(Rejected, match="instant"):
        parse_instant(text)


@pytest.mark.parametrize("offset", ["+24:00", "-24:00", "+99:99", "+00:60", "-12:75"])
def test_an_offset_out_of_range_is_rejected(offset: str) -> None:
    with pytest.raises(Rejected, match="instant"):
        parse_instant(f"2026-01-01T00:00:00{offset}")


@given(
    st.datetimes(datetime(1900, 1, 2), datetime(2200, 1, 1)),
    st.integers(-23 * 60 - 59, 23 * 60 + 59),
    st.integers(0, 999),
)
def test_an_instant_agrees_with_datetime_to_the_nanosecond(naive: datetime, offset_minutes: int, below_us: int) -> None:
    moment = naive.replace(tzinfo=timezone(timedelta(minutes=offset_minutes)))
    since = moment - EPOCH
    want = (since.days * 86_400 + since.seconds) * 10**9 + since.microseconds * 1000 + below_us
    sign, away = ("-", -offset_minutes) if offset_minutes < 0 else ("+", offset_minutes)
    text = f"{naive:%Y-%m-%dT%H:%M:%S}.{naive.microsecond:06d}{below_us:03d}{sign}{away // 60:02d}:{away % 60:02d}"
    assert parse_instant(text) == want


def test_a_rendered_year_has_four_digits() -> None:
    assert render_instant(parse_instant("0366-08-21T09:46:27+11:40")) == "0366-08-20T22:06:27.000Z"


@given(st.integers(0, 4_102_444_800_000_000_000))
@example(999_999)
@example(1_773_584_581_441_999_999)
def test_a_rendered_instant_is_cut_to_the_millisecond(ns: int) -> None:
    text = render_instant(ns)
    moment = EPOCH + timedelta(milliseconds=ns // 10**6)
    assert text == moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"
    assert parse_instant(text) == ns // 10**6 * 10**6


@pytest.mark.parametrize(
    ("usd", "nusd"),
    [
        (0, 0),
        (0.0, 0),
        (-0.0, 0),
        (0.00448, 4_480_000),
        (0.1, 100_000_000),
        (0.1 + 0.2, 300_000_000),
        (1, 10**9),
        (1e6, 10**15),
        (1e-9, 1),
        (5e-10, 0),  # half rounds to even
        (1.5e-9, 2),
        (2.5e-9, 2),
        (3.5e-9, 4),
        (4.999e-10, 0),
        (5.001e-10, 1),
        (5e-324, 0),
        (Decimal("0.0000000015"), 2),
        (Decimal("0.0000000025"), 2),
        (Decimal("123456789.123456789"), 123_456_789_123_456_789),
    ],
)
def test_dollars_convert_to_whole_nano_dollars_half_to_even(usd: float | Decimal, nusd: int) -> None:
    assert usd_to_nusd(usd) == nusd


@given(st.one_of(st.floats(0, 2e6), st.floats(0, 1e-6), st.floats(0, 1e290)))
@example(1_125_899.906842624)
@example(1_125_899.9068426238)
@example(562_949.9534213125)
def test_a_float_of_dollars_stands_for_its_shortest_decimal(usd: float) -> None:
    assert usd_to_nusd(usd) == exactly(usd, 10**9)


@given(st.integers(0, 10**15), st.sampled_from([0, 1, 4, 5, 6, 9]))
def test_tenths_of_a_nano_dollar_are_rounded_half_to_even(nusd: int, tenth: int) -> None:
    usd = Decimal(nusd * 10 + tenth).scaleb(-10)
    assert usd_to_nusd(usd) == exactly(usd, 10**9)
    assert usd_to_nusd(float(usd)) == exactly(float(usd), 10**9)


@given(st.floats(-1e307, 1e307), st.sampled_from([usd_to_nusd, score_to_int, ms_to_ns]))
@example(1.7e308, usd_to_nusd)
@example(1.7e308, ms_to_ns)
@example(-1.7e308, score_to_int)
def test_any_finite_float_converts_exactly(value: float, convert: Callable[[float], int]) -> None:
    assert convert(value) == exactly(value, 10**6 if convert is ms_to_ns else 10**9)


@given(st.integers(0, 10**15))
def test_nano_dollars_convert_to_a_float_of_dollars_and_back(nusd: int) -> None:
    assert usd_to_nusd(nusd_to_usd(nusd)) == nusd


@given(st.integers(0, 10**9))
def test_a_score_converts_to_a_float_and_back(value: int) -> None:
    assert score_to_int(int_to_score(value)) == value


@given(st.integers(0, 30 * DAY))
def test_nanoseconds_convert_to_milliseconds_and_back(ns: int) -> None:
    assert ms_to_ns(ns_to_ms(ns)) == ns


@given(st.one_of(st.integers(0, 10**12), st.floats(0, 1e10)))
def test_milliseconds_convert_to_whole_nanoseconds(ms: float) -> None:
    assert ms_to_ns(ms) == exactly(ms, 10**6)


def test_whole_milliseconds_are_an_int() -> None:
    assert repr(ns_to_ms(1_240_000_000)) == "1240"
    assert repr(ns_to_ms(1_240_500_000)) == "1240.5"
    assert repr(ns_to_ms(0)) == "0"


@pytest.mark.parametrize("value", [0, 1, -1, 2**70, 0.0, 1.5, -1e300])
def test_finite_ints_and_floats_are_numbers(value: float) -> None:
    assert is_number(value)


@pytest.mark.parametrize("value", [True, False, None, "5", b"5", math.nan, math.inf, -math.inf, Decimal(1), [], 1j])
def test_bools_texts_and_infinite_values_are_not_numbers(value: object) -> None:
    assert not is_number(value)


@given(st.one_of(st.text(max_size=200), st.integers(), st.binary(max_size=200), st.none()))
def test_a_value_in_an_error_text_is_short_and_printable(value: object) -> None:
    text = shorten(value)
    assert len(text) <= 40
    assert text.replace("…", "").isascii()
    assert text.isprintable()


def test_errors_share_a_base_rejected_has_a_status_and_unavailable_a_delay() -> None:
    assert Rejected("no").status == 400
    assert Rejected("no", status=413).status == 413
    assert Unavailable("away").retry_after_s == 1
    assert all(issubclass(kind, TokentraceError) for kind in (Rejected, Unavailable, ConfigError))
