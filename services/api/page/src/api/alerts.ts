// The answers of `/alerts` and below; the server's OpenAPI document describes them.

import type { Pair } from '../core/params'
import { named, query } from './client'

export type StateName = 'inactive' | 'pending' | 'firing' | 'resolved' | 'no_data' | 'warming'
export type Operator = 'gt' | 'gte' | 'lt' | 'lte'
export type Level = 'warning' | 'critical'
export type Outcome = 'none' | 'pending' | 'retry' | 'delivered' | 'dead' | 'expired' | 'unknown'
export type LastDelivery = { outcome: 'delivered' | 'retry' | 'dead' | 'expired'; in_a_row: number; attempts: number; error: string; at: string }
export type Instance = {
  group: string
  state: StateName
  current_value: number | null
  span_count: number
  unpriced_span_count?: number
  starts_at: string | null
  last_fired: string | null
  why_not_fired: string | null
}
export type RuleState = {
  name: string
  metric: string
  op: Operator
  threshold: number
  window: string
  last_evaluated: string | null
  last_fired: string | null
  current_value: number | null
  firing: boolean
  silenced: boolean
  silenced_until: string | null
  silenced_at: string | null
  silenced_by: string | null
  silence_comment: string | null
  silence_ended: string | null
  held_back: number
  level: Level
  filter: Record<string, string>
  min_spans: number
  cooldown: string
  eval_interval: string
  for: string
  recovery_threshold: number | null
  no_data: string
  unpriced: string
  group_by: string | null
  change: 'absolute' | 'percent' | null
  delivery: string | null
  destination: string | null
  send_resolved: boolean | null
  last_delivery: LastDelivery | null
  next_evaluation: string | null
  span_count: number
  unpriced_span_count?: number
  spans_considered: number
  late_spans: number
  state: StateName
  starts_at: string | null
  why_not_fired: string | null
  instance_count?: number
  firing_instance_count?: number
  /** The instance that the value, the state and `starts_at` are about. */
  worst_group?: string
  instances?: Instance[]
  overflow?: { current_value: number | null; span_count: number }
  recent_values: (number | null)[]
  breached: boolean
  misses_late_scores: boolean
  source: 'file' | 'created'
  hides_rule_of_file: boolean
}
export type AlertEvent = {
  alert: string
  fired_at: string
  metric: string
  op: Operator
  value: number | null
  threshold: number
  window: string
  level: Level
  message: string
  status: 'firing' | 'resolved'
  starts_at: string
  ends_at: string | null
  group: Record<string, string>
  ended_by?: string
}
export type ListedEvent = AlertEvent & {
  delivery: { outcome: Outcome; attempts: number; channel: string | null; destination: string | null; error: string; at: string | null }
}
export type EventPage = { events: ListedEvent[]; count: number; next_cursor: string | null }
export type DeliveryAttempt = {
  fired_at: string
  status: 'firing' | 'resolved'
  group: Record<string, string>
  channel: string
  destination: string
  outcome: 'delivered' | 'retry' | 'dead' | 'expired'
  attempt: number
  error: string
  at: string
  took_ms: number | null
  retry_after_s: number | null
}
export type Deliveries = { deliveries: DeliveryAttempt[]; count: number }
export type Silence = { at: string; until: string; by: string | null; comment: string | null }
export type Silences = { silences: Silence[]; count: number }
/** A rule as it is written: the form of `POST /alerts`. */
export type Written = Record<string, unknown>
export type Definition = { source: 'file' | 'created'; rule: Written; hidden: string[] }
export type RulePoint = { at: string; value: number | null; span_count: number; breached: number; instances: number }
export type RuleSeries = {
  name: string
  metric: string
  op: Operator
  threshold: number
  recovery_threshold: number | null
  from: string
  to: string
  until: string
  complete: boolean
  step_s: number
  points: RulePoint[]
}
export type Preview = RuleSeries & { firings: number; resolutions: number; events: AlertEvent[] }

/** The path of what is below the rule *name*. */
export function rulePath(name: string, what = '', params: Iterable<Pair> = []): string {
  return `./alerts/${named(name)}${what}${query(params)}`
}
