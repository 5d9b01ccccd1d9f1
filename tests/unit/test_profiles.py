"""Tests of what a profile leaves out."""

from __future__ import annotations

from kit.examples import long_ones


def test_the_fast_profile_leaves_out_the_long_tests_of_a_file_with_others() -> None:
    assert long_ones([("a", "1.py", True), ("b", "1.py", False), ("c", "1.py", True)]) == {"a", "c"}


def test_the_fast_profile_runs_the_first_test_of_a_file_with_only_long_ones() -> None:
    tests = [("a", "1.py", True), ("b", "2.py", False), ("c", "1.py", True), ("d", "3.py", True), ("e", "2.py", False)]
    assert long_ones(tests) == {"c"}


def test_the_fast_profile_runs_tests_that_are_not_long() -> None:
    assert long_ones([("a", "1.py", False), ("b", "2.py", False)]) == set()
