"""Alert rules: their compiled form, their decisions, and the state of their instances."""

from tokentrace_alerter.rules.decide import Decision, Ending, State, breaches, decide, end, owns, rank
from tokentrace_alerter.rules.evaluator import RuleEvaluator, instance_of
from tokentrace_alerter.rules.filter_index import FilterIndex
from tokentrace_alerter.rules.render import render_status
from tokentrace_alerter.rules.schema import Rule, compile_rule, parse_rule, rule_id_of
from tokentrace_alerter.rules.window import select

__all__ = [
    "Decision",
    "Ending",
    "FilterIndex",
    "Rule",
    "RuleEvaluator",
    "State",
    "breaches",
    "compile_rule",
    "decide",
    "end",
    "instance_of",
    "owns",
    "parse_rule",
    "rank",
    "render_status",
    "rule_id_of",
    "select",
]
