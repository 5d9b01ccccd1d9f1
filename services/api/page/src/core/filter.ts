// Filters of a page: what can be filtered by, and the parameters of an address as chips.

import { duration, money, count, exactCount } from './format'
import type { Pair, Params } from './params'
import { parseWindow, type Range } from './time'

/**
 * How a filter compares: with values that the spans hold, with one of few fixed values, with a text that is contained, or
 * with a bound.
 */
export type Kind = 'value' | 'choice' | 'text' | 'least' | 'most'

export type FilterKey = {
  /** The parameter in the address and of the API. */
  name: string
  /** What people read. */
  label: string
  kind: Kind
  /** The values of a choice. */
  choices?: readonly string[]
  /** What `GET /values` calls it, and so do its filters; absent = as *name*; null = it has no such name. */
  of?: string | null
  unit?: 'usd' | 'ms' | 'count'
  /** True if an empty value asks for spans without one. */
  none?: boolean
}

export type FilterSet = {
  keys: readonly FilterKey[]
  /** `attr.<key>` is a filter. */
  attributes: boolean
  /** `not.<name>` is a filter, and so is `not.attr.<key>`. */
  excluded: boolean
  /** A filter by a value may be given several times: one of them. */
  several: boolean
  /** The parameter that a text without a name stands for. */
  text?: string
  /** Parameters of the page itself. */
  own: readonly string[]
}

/** Parameters that every page may have. */
const RANGE = ['window', 'from', 'to']
const ATTRIBUTE = 'attr.'
const NOT = 'not.'

const value = (name: string, label = name, more: Partial<FilterKey> = {}): FilterKey => ({ name, label, kind: 'value', ...more })
const bound = (name: string, label: string, unit: 'usd' | 'ms' | 'count'): FilterKey[] => [
  { name: `min_${name}`, label: `${label} ≥`, kind: 'least', unit }, { name: `max_${name}`, label: `${label} ≤`, kind: 'most', unit },
]
const NONE = { none: true }
const STATUS = value('status', 'status', { choices: ['ok', 'error', 'timeout'] })
const IDS = [value('user_id', 'user', NONE), value('session_id', 'session', NONE)]

/** The filters of `GET /traces`, its series, its tail and of `GET /export`. */
export const TRACE_FILTERS: FilterSet = {
  keys: [
    STATUS, value('model', 'model', NONE), value('caller', 'caller', NONE), value('name'), value('kind'),
    value('provider', 'provider', NONE), ...IDS,
    ...bound('cost', 'cost', 'usd'), ...bound('latency', 'latency', 'ms'), ...bound('tokens', 'tokens', 'count'),
    { name: 'q', label: 'name or error contains', kind: 'text' },
  ],
  attributes: true, excluded: true, several: true, text: 'q',
  own: ['cursor', 'order', 'columns'],
}

/** The filters of `GET /calls`. */
export const CALL_FILTERS: FilterSet = { ...TRACE_FILTERS, own: ['cursor', 'order'] }

/** The filters of `GET /metrics/{name}` and of its series. */
export const METRIC_FILTERS: FilterSet = {
  keys: [
    value('model', 'model', NONE), value('caller', 'caller', NONE), STATUS, value('name'), value('kind'),
    value('provider', 'provider', NONE), ...IDS,
  ],
  attributes: true, excluded: false, several: false, own: ['groupby', 'step', 'compare', 'compare_from', 'compare_to', 'top', 'order', 'key'],
}

/** *set* with other parameters of the page itself. */
export const withOwn = (set: FilterSet, own: readonly string[]): FilterSet => ({ ...set, own })

export type Chip = { name: string; value: string; key: FilterKey; not: boolean }

/** The filter that a parameter is; null = it is none of *set*. */
export function keyOf(set: FilterSet, name: string): { key: FilterKey; not: boolean } | null {
  const not = set.excluded && name.startsWith(NOT)
  const plainName = not ? name.slice(NOT.length) : name
  const key = set.keys.find((each) => each.name === plainName) ?? attributeKey(set, plainName)
  return key && (!not || (key.kind === 'value' || key.kind === 'choice')) ? { key, not } : null
}

function attributeKey(set: FilterSet, name: string): FilterKey | null {
  return set.attributes && name.startsWith(ATTRIBUTE) && name.length > ATTRIBUTE.length ? value(name, name) : null
}

/** The filters among the parameters of an address, in their order; of one that counts once, the first. */
export function chips(params: Params, set: FilterSet = TRACE_FILTERS): Chip[] {
  return params.names().flatMap((name) => {
    const found = keyOf(set, name)
    if (!found) return []
    const values = params.all(name)
    return (takesSeveral(set, found.key) ? values : values.slice(0, 1)).map((given) => ({ name, value: given, ...found }))
  })
}

/** The filters among *params* as parameters of a request. */
export function filtersOf(params: Params, set: FilterSet = TRACE_FILTERS): Pair[] {
  return chips(params, set).map(({ name, value: given }): Pair => [name, given])
}

/** The filters of *params* that `GET /values` knows, by its names; those by *except* are left out, so that others show. */
export function filtersOfSpans(params: Params, set: FilterSet, except: string): Pair[] {
  return chips(params, set).flatMap(({ key, value: given, not, name }): Pair[] => {
    const of = key.of === undefined ? key.name : key.of
    if (of === null || name === except || (key.name === 'kind' && given === 'all')) return []
    return [[not ? NOT + of : of, given]]
  })
}

/** A range as parameters of `GET /values`, `/keys`, `/traces` and its series. */
export function within(range: Range): Pair[] {
  if (range.kind === 'all') return []
  return range.kind === 'window' ? [['window', range.window]] : [['since', range.from], ['until', range.to]]
}

/** The parameters that the page does not understand; they are shown, never dropped silently. */
export function unknown(params: Params, set: FilterSet = TRACE_FILTERS): string[] {
  return params.names().filter((name) => !keyOf(set, name) && !RANGE.includes(name) && !set.own.includes(name))
}

/** The parameters that count once but are given more often; the first counts. */
export function repeated(params: Params, set: FilterSet = TRACE_FILTERS): string[] {
  return params.names().filter((name) => {
    if (params.all(name).length < 2) return false
    const found = keyOf(set, name)
    if (!found) return name !== 'columns' && (RANGE.includes(name) || set.own.includes(name))
    return !takesSeveral(set, found.key)
  })
}

export function takesSeveral(set: FilterSet, key: FilterKey): boolean {
  return set.several && (key.kind === 'value' || key.kind === 'choice')
}

/** The parameters with one more filter; one that counts once is replaced. The page of a list begins anew. */
export function plus(params: Params, set: FilterSet, name: string, given: string): Params {
  const found = keyOf(set, name)
  const begun = params.without('cursor')
  return found && takesSeveral(set, found.key) ? begun.plus(name, given) : begun.with({ [name]: given })
}

/** The parameters without the filter *name*, or without one value of it, and without the page that they led to. */
export function without(params: Params, name: string, given?: string): Params {
  return params.without(name, given).without('cursor')
}

/** What a chip says, in the order of reading: `cost ≥`, `$0.01`. */
export function words({ key, value: given, not }: Chip): { what: string; value: string } {
  if (key.kind === 'least' || key.kind === 'most') return { what: key.label, value: amount(key, given) }
  if (key.kind === 'text') return { what: key.label, value: `“${given}”` }
  return { what: `${key.label} ${not ? '≠' : '='}`, value: given || '(none)' }
}

function amount(key: FilterKey, given: string): string {
  const number = Number(given)
  // What is no number is shown as it is; the API says what is wrong with it.
  if (given.trim() === '' || !Number.isFinite(number)) return given
  return key.unit === 'usd' ? money(number) : key.unit === 'ms' ? duration(number) : count(number)
}

/** The value that was typed for *key*, as the API reads it; `{ problem }` = why it is none. */
export function parseValue(key: FilterKey, text: string): string | { problem: string } {
  const typed = text.trim()
  if (key.kind === 'text') return typed || { problem: `${key.label}: write a text` }
  if (key.kind !== 'least' && key.kind !== 'most') return typed
  const plainly = typed.replace(/^\$/, '').replaceAll(',', '')
  const ms = key.unit === 'ms' ? parseWindow(plainly) : null
  const number = ms ?? (plainly === '' ? NaN : Number(plainly))
  if (Number.isFinite(number) && number >= 0) return String(number)
  const such = { usd: 'US dollars, such as 0.01', ms: 'time, such as 1.5s or 200ms', count: `tokens, such as ${exactCount(1000)}` }
  return { problem: `${key.label} “${typed}” is no amount of ${such[key.unit ?? 'count']}` }
}

const OPERATORS: readonly [string, Kind | 'not' | 'is'][] = [['!=', 'not'], ['≠', 'not'], ['>=', 'least'], ['≥', 'least'], ['<=', 'most'], ['≤', 'most'], ['=', 'is']]

/** The filter that was typed: `model=gpt-4o`, `model!=gpt-4o`, `cost>=0.01`, or any text; text = why it is none. */
export function parseTyped(text: string, set: FilterSet): Pair | string {
  const typed = text.trim()
  if (!typed) return 'write name=value, or a text to look for'
  let first: { at: number; sign: string; means: Kind | 'not' | 'is' } | null = null
  for (const [sign, means] of OPERATORS) {
    const at = typed.indexOf(sign)
    if (at > 0 && (first === null || at < first.at)) first = { at, sign, means }
  }
  if (first === null) return set.text ? [set.text, typed] : `${typed}: write name=value; ${allowed(set)}`
  const left = typed.slice(0, first.at).trim()
  const found = lookUp(set, left, first.means)
  if (!found) return `${left}: is no filter; ${allowed(set)}`
  const parsed = parseValue(found.key, typed.slice(first.at + first.sign.length))
  if (typeof parsed !== 'string') return parsed.problem
  return [found.not ? NOT + found.key.name : found.key.name, parsed]
}

function lookUp(set: FilterSet, left: string, means: Kind | 'not' | 'is'): { key: FilterKey; not: boolean } | null {
  const sign = means === 'least' ? ' ≥' : means === 'most' ? ' ≤' : ''
  const names = set.keys.filter((key) => key.label === left + sign).map((key) => key.name)
  for (const name of [left, ...names]) {
    const found = keyOf(set, means === 'not' ? NOT + name : name)
    if (!found) continue
    const isBound = found.key.kind === 'least' || found.key.kind === 'most'
    if (means === 'is' || means === 'not' ? true : isBound && found.key.kind === means) return found
  }
  return null
}

function allowed(set: FilterSet): string {
  return `filters are ${[...set.keys.map((key) => key.name), ...(set.attributes ? ['attr.<key>'] : [])].join(', ')}`
}

/** The filters that show the traces like one with *value*. A trace is ok if none of its spans failed. */
export function filterFor(name: string, given: string): Pair[] {
  return name === 'status' && given === 'ok' ? [['not.status', 'error'], ['not.status', 'timeout']] : [[name, given]]
}

/** The filters that leave out the traces like one with *value*. */
export function filterOut(name: string, given: string): Pair[] {
  return name === 'status' && given === 'ok' ? [['status', 'error'], ['status', 'timeout']] : [[NOT + name, given]]
}
