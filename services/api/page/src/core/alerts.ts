// What the state of a rule means in words, and a rule as a form has it.

import type { LastDelivery, Operator, RuleState, Written } from '../api/alerts'
import { amount, count, duration, plain, type Unit } from './format'
import type { Pair, Params } from './params'
import { parseWindow } from './time'

export const SYMBOLS: Record<Operator, string> = { gt: '>', gte: '≥', lt: '<', lte: '≤' }
export const DIMENSIONS = ['model', 'provider', 'caller', 'name', 'status', 'kind', 'user_id', 'session_id']

/** A state as a sign, a word and a class; the sign tells it without the colour. */
export type Sign = { sign: string; word: string; tone: 'error' | 'warning' | 'ok' | 'dim' }

export function signOf(rule: Pick<RuleState, 'state' | 'silenced' | 'firing' | 'level'>): Sign {
  if (rule.silenced) return { sign: '◐', word: rule.firing ? 'silenced, would fire' : 'silenced', tone: rule.firing ? 'warning' : 'dim' }
  switch (rule.state) {
    case 'firing': return { sign: '●', word: `firing, ${rule.level}`, tone: rule.level === 'critical' ? 'error' : 'warning' }
    case 'pending': return { sign: '◔', word: 'pending', tone: 'warning' }
    case 'warming': return { sign: '○', word: 'warming up', tone: 'dim' }
    case 'no_data': return { sign: '◌', word: 'no data', tone: 'dim' }
    case 'resolved': return { sign: '✓', word: 'resolved', tone: 'ok' }
    default: return { sign: '✓', word: 'ok', tone: 'ok' }
  }
}

/** Rules in the order of their urgency: those that fire first, critical before warning; then by name. */
export function byUrgency(rules: readonly RuleState[]): RuleState[] {
  const rank = (rule: RuleState) => {
    if (rule.silenced) return rule.firing ? 3 : 5
    if (rule.state === 'firing') return rule.level === 'critical' ? 0 : 1
    return rule.state === 'pending' ? 2 : rule.last_delivery?.outcome === 'dead' ? 4 : 5
  }
  return [...rules].sort((a, b) => rank(a) - rank(b) || (a.name < b.name ? -1 : 1))
}

/** Why the last evaluation published nothing, as a sentence; the names are those of the API. */
export function whyOf(rule: RuleState, unit: Unit): string {
  const value = valueOf(rule.current_value, rule, unit)
  const limit = valueOf(rule.threshold, rule, unit)
  const held = rule.held_back ? ` It has held back ${count(rule.held_back)} ${rule.held_back === 1 ? 'firing' : 'firings'}.` : ''
  switch (rule.why_not_fired) {
    case null: return rule.last_evaluated ? 'The last evaluation published an event.' : 'The rule has not been evaluated yet.'
    case 'ok': return `The condition does not hold: ${value} is not ${SYMBOLS[rule.op]} ${limit}.`
    case 'no_data': return 'No span in the window matches, so there is no value.'
    case 'min_spans': return `Only ${count(rule.span_count)} spans in the window; the rule needs ${count(rule.min_spans)} (min_spans).`
    case 'warming': return 'The log does not cover the whole window yet, so a missing value would mean nothing.'
    case 'silenced': return `The condition holds, but the rule is silenced.${held}`
    case 'pending': return `The condition holds, but not for ${rule.for} yet (for).`
    case 'cooldown': return `The condition holds, but the rule fired less than ${rule.cooldown} ago (cooldown).`
    default: return plain(rule.why_not_fired)
  }
}

/** A value of a rule, in the unit of its metric; that of a change in percent is a number of percent. */
export function valueOf(value: number | null, rule: { change?: string | null }, unit: Unit): string {
  if (value !== null && rule.change === 'percent') return amount(value / 100, 'share')
  return amount(value, unit)
}

/** The unit of what a rule measures; *metrics* are those of `GET /page.json`. */
export function unitOf(metric: string, metrics: readonly { name: string; unit: Unit }[]): Unit {
  if (metric.startsWith('attr.')) return metric.endsWith(':count') ? 'count' : 'any'
  return metrics.find(({ name }) => name === metric)?.unit ?? 'any'
}

/** What a rule watches, as a sentence: `latency_p95 of the last 5m > 3 s, for 2m, by user_id`. */
export function conditionOf(rule: RuleState, unit: Unit): string {
  const what = rule.change ? `change of ${plain(rule.metric)} against the ${rule.window} before` : `${plain(rule.metric)} of the last ${rule.window}`
  const parts = [`${what} ${SYMBOLS[rule.op]} ${valueOf(rule.threshold, rule, unit)}`]
  if (parseWindow(rule.for) !== null) parts.push(`for ${rule.for}`)
  if (rule.group_by) parts.push(`for each ${plain(rule.group_by)}`)
  for (const [key, value] of Object.entries(rule.filter)) parts.push(`only ${plain(key)} = ${plain(value) || '(none)'}`)
  return parts.join(', ')
}

/** What became of the last deliveries. */
export function deliverySign(last: LastDelivery): Sign {
  const times = last.in_a_row > 1 ? ` ${count(last.in_a_row)}×` : ''
  switch (last.outcome) {
    case 'delivered': return { sign: '✓', word: `delivered${times}`, tone: 'ok' }
    case 'retry': return { sign: '…', word: `failed ${count(last.attempts)}×, tried again`, tone: 'warning' }
    case 'dead': return { sign: '✕', word: `dead${times}`, tone: 'error' }
    case 'expired': return { sign: '◷', word: `expired${times}`, tone: 'warning' }
  }
}

/** What became of the delivery of one event, in words. */
export function outcomeText(delivery: { outcome: string; attempts: number }): { sign: string; word: string; tone: Sign['tone'] } {
  const tries = delivery.attempts === 1 ? '1 attempt' : `${count(delivery.attempts)} attempts`
  switch (delivery.outcome) {
    case 'none': return { sign: '–', word: 'not delivered: published only', tone: 'dim' }
    case 'pending': return { sign: '…', word: 'waits', tone: 'dim' }
    case 'retry': return { sign: '…', word: `${tries} failed, tried again`, tone: 'warning' }
    case 'delivered': return { sign: '✓', word: delivery.attempts > 1 ? `delivered after ${tries}` : 'delivered', tone: 'ok' }
    case 'dead': return { sign: '✕', word: `dead after ${tries}`, tone: 'error' }
    case 'expired': return { sign: '◷', word: 'expired: too old to be delivered', tone: 'warning' }
    default: return { sign: '?', word: 'not known any more', tone: 'dim' }
  }
}

/** How long from *now* until *until*, short: `52m`. */
export function left(until: string, now: number): string {
  return duration(Math.max(0, Math.round((Date.parse(until) - now) / 1000) * 1000))
}

/** The parameters of the list of traces for what a rule looks at: its filter, and one instance if *group* is given. */
export function tracesOf(rule: RuleState, group: string | null, until: number): Pair[] {
  const ms = parseWindow(rule.window) ?? 0
  const filters = Object.entries(rule.filter)
  if (rule.group_by && group !== null) filters.push([rule.group_by, group])
  return [
    ...filters.map(([key, value]): Pair => [filterName(key), value]),
    ['from', new Date(until - ms).toISOString()], ['to', new Date(until).toISOString()],
  ]
}

/** The name of a filter of a rule as the other routes have it: an attribute is written with `attr.`. */
export function filterName(key: string): string {
  return DIMENSIONS.includes(key) || key.startsWith('attr.') ? key : `attr.${key}`
}

/** An error text of a rule: the field that it names, such as `delivery.url`, and the text; "" = it names none. */
export function errorOf(text: string): { field: string; text: string } {
  if (text.startsWith('a rule is called ')) return { field: 'name', text }
  const found = /^rule\.([a-z_]+(?:\.[^\s:]+)*)(?:: |$)/.exec(text)
  if (!found) return { field: '', text }
  const [first, second] = found[1]!.split('.')
  return { field: first === 'delivery' && second ? `delivery.${second}` : first!, text }
}

// -- a rule as a form has it

export type Draft = { texts: Record<string, string>; filter: [string, string][]; headers: [string, string][] }

/** Fields of a delivery, by its type. */
export const DELIVERY_FIELDS: Record<string, readonly string[]> = {
  '': [],
  webhook: ['url', 'format', 'secret', 'headers', 'timeout', 'max_retries', 'send_resolved'],
  http: ['url', 'format', 'secret', 'headers', 'timeout', 'max_retries', 'send_resolved'],
  alertmanager: ['url', 'headers', 'timeout', 'max_retries'],
  stdout: ['send_resolved'],
}
const NUMBERS = new Set(['threshold', 'recovery_threshold', 'min_spans', 'delivery.max_retries'])
const FLAGS = new Set(['silenced', 'delivery.send_resolved'])
const OPERATORS: Record<string, string> = { '>': 'gt', '>=': 'gte', '<': 'lt', '<=': 'lte' }

export const NEW_RULE: Draft = { texts: { op: 'gt', window: '5m', level: 'warning' }, filter: [], headers: [] }

/** A rule as a form shows it. */
export function draftOf(rule: Written): Draft {
  const texts: Record<string, string> = {}
  const pairs = (value: unknown): [string, string][] => Object.entries((value ?? {}) as Record<string, string>)
  const put = (prefix: string, fields: Written) => {
    for (const [key, value] of Object.entries(fields)) {
      if (value === null || typeof value === 'object') continue
      texts[prefix + key] = value === false ? '' : String(value)
    }
  }
  put('', rule)
  texts.op = OPERATORS[texts.op ?? ''] ?? texts.op ?? 'gt'
  const delivery = (rule.delivery ?? {}) as Written
  put('delivery.', delivery)
  return { texts, filter: pairs(rule.filter), headers: pairs(delivery.headers) }
}

/** The rule of a form. What is empty is left out; what is no number is sent as it is, so that the API says what is wrong. */
export function ruleOf(draft: Draft): Written {
  const typed = (field: string): unknown => {
    const text = (draft.texts[field] ?? '').trim()
    if (FLAGS.has(field)) return text === 'true' || undefined
    if (text === '') return undefined
    return NUMBERS.has(field) && Number.isFinite(Number(text)) ? Number(text) : text
  }
  const rule: Written = {}
  for (const field of Object.keys(draft.texts)) {
    const value = field.startsWith('delivery.') ? undefined : typed(field)
    if (value !== undefined) rule[field] = value
  }
  const filter = draft.filter.filter(([key, value]) => key.trim() || value)
  if (filter.length) rule.filter = Object.fromEntries(filter.map(([key, value]) => [key.trim(), value]))
  const type = draft.texts['delivery.type'] ?? ''
  if (type) {
    const delivery: Written = { type }
    for (const field of DELIVERY_FIELDS[type] ?? []) {
      const value = field === 'headers' ? undefined : typed(`delivery.${field}`)
      if (value !== undefined) delivery[field] = value
    }
    const headers = draft.headers.filter(([key, value]) => key.trim() || value)
    if (headers.length && DELIVERY_FIELDS[type]?.includes('headers')) delivery.headers = Object.fromEntries(headers)
    rule.delivery = delivery
  }
  return rule
}

/** A new rule with what an address says: a metric, a window, groups and filters, such as `metric=…&groupby=…&model=…`. */
export function prefilled(params: Params): Draft {
  const texts = { ...NEW_RULE.texts }
  for (const field of ['name', 'metric', 'op', 'threshold', 'window', 'level']) {
    const value = field === 'name' ? undefined : params.get(field)
    if (value) texts[field] = value
  }
  const group = params.get('groupby')
  if (group) texts.group_by = group
  // `kind=all` is how other pages say that no kind is left out.
  const filter = [...params].filter(([name, value]) => (DIMENSIONS.includes(name) || name.startsWith('attr.')) && !(name === 'kind' && value === 'all'))
  return { texts, filter: filter.map(([name, value]) => [name, value]), headers: [] }
}

/** Parameters of an address that a new rule is made from. */
export function isPrefill(name: string): boolean {
  return ['new', 'metric', 'op', 'threshold', 'window', 'level', 'groupby', 'from', 'to', 'kind'].includes(name)
    || DIMENSIONS.includes(name) || name.startsWith('attr.')
}

const PLAIN_KEY = /^[A-Za-z_][A-Za-z0-9_.-]*$/
const WORDS = new Set(['true', 'false', 'null', 'yes', 'no', 'on', 'off', 'y', 'n'])

/** A text of YAML: bare if it can be nothing else, else in the quotes of JSON, which YAML reads too. */
function scalar(value: unknown): string {
  if (typeof value === 'string' && PLAIN_KEY.test(value) && !WORDS.has(value.toLowerCase())) return value
  // JSON leaves these line ends as they are, and YAML would break the line.
  return JSON.stringify(value).replace(/[\u007f-\u009f\u2028\u2029\ufeff]/g, (letter) => `\\u${letter.charCodeAt(0).toString(16).padStart(4, '0')}`)
}

/** A rule as an item of `alerts` in `tokentrace.yml`. */
export function yamlOf(rule: Written): string {
  const lines = (map: Written, indent: string): string[] => Object.entries(map).flatMap(([key, value]) => {
    if (value === undefined || value === null) return []
    if (typeof value !== 'object') return [`${indent}${scalar(key)}: ${scalar(value)}`]
    const below = lines(value as Written, `${indent}  `)
    return below.length ? [`${indent}${scalar(key)}:`, ...below] : [`${indent}${scalar(key)}: {}`]
  })
  return `alerts:\n${lines(rule, '    ').join('\n').replace(/^ {4}/, '  - ')}\n`
}
