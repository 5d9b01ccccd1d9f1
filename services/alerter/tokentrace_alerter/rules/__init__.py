"""Alert rules: their schema, their decisions, their state over time, and where they are stored."""

from tokentrace_alerter.rules.evaluator import RuleEvaluator, instance_of
from tokentrace_alerter.rules.filter_index import FilterIndex
from tokentrace_alerter.rules.render import render_watch
from tokentrace_alerter.rules.rule import Decision, Rule, State, breaches, decide, parse_rule
from tokentrace_alerter.rules.window import choose

__all__ = [
    "Decision",
    "FilterIndex",
    "Rule",
    "RuleEvaluator",
    "State",
    "breaches",
    "choose",
    "decide",
    "instance_of",
    "parse_rule",
    "render_watch",
]
