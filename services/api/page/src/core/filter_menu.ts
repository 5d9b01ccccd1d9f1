// What the field that adds a filter offers, for what was typed so far.

import { chips, parseTyped, words, type FilterKey, type FilterSet } from './filter'
import { ago } from './time'
import { exactCount } from './format'
import { Params, type Pair } from './params'

/** A key to choose a value of, or a whole filter to add. */
export type Option = { text: string; beside: string } & ({ takes: FilterKey } | { adds: Pair })
export type HeldValue = { value: string; count: number; last_started_at: string }
export type HeldKey = { key: string; types: string[]; count: number }

/**
 * The keys of *set* and the attributes in *held* that fit *text*, and the filter that *text* is by itself.
 *
 * *first* is the one that Enter takes: it follows from *text* alone, never from what has been loaded; -1 = none.
 */
export function keyOptions(set: FilterSet, held: readonly HeldKey[], text: string): { options: Option[]; first: number } {
  const typed = text.trim().toLowerCase()
  const option = (key: FilterKey, beside = key.unit ? 'of a span' : ''): Option => ({ text: key.label, beside, takes: key })
  const parsed = typed ? parseTyped(text, set) : ''
  const whole = typeof parsed === 'string' ? [] : [wholeOption(set, parsed)]
  const isPlain = typeof parsed === 'string' || parsed[0] === set.text
  const begins = isPlain ? set.keys.filter((key) => key.label.toLowerCase().startsWith(typed) || key.name.startsWith(typed)) : []
  const further = isPlain && typed ? set.keys.filter((key) => !begins.includes(key) && key.kind !== 'text' && key.label.includes(typed)) : []
  const attributes = isPlain
    ? held.filter(({ key }) => `attr.${key}`.toLowerCase().includes(typed)).map(({ key, types, count }) => option(
      { name: `attr.${key}`, label: `attr.${key}`, kind: 'value' }, `${types.join(', ')}, ${exactCount(count)} spans`,
    )) : []
  const sure = [...begins.map((key) => option(key)), ...whole]
  return { options: [...sure, ...further.map((key) => option(key)), ...attributes], first: typed && sure.length ? 0 : -1 }
}

function wholeOption(set: FilterSet, pair: Pair): Option {
  const [chip] = chips(new Params([pair]), set)
  const { what, value } = words(chip!)
  return { text: `${what} ${value}`, beside: 'Enter', adds: pair }
}

/** The values in *held* that begin with *text*, the choices of *key* that no span has, and "none" where it may be asked for. */
export function valueOptions(key: FilterKey, name: string, held: readonly HeldValue[], text: string, now: number): Option[] {
  const typed = text.trim().toLowerCase()
  const fits = (value: string) => value.toLowerCase().startsWith(typed)
  const known = new Set(held.map(({ value }) => value))
  const listed = held.filter(({ value }) => fits(value)).map(({ value, count, last_started_at }): Option => ({
    text: value, beside: `${exactCount(count)} spans, last ${ago(Date.parse(last_started_at), now)}`, adds: [name, value],
  }))
  const choices = (key.choices ?? []).filter((value) => !known.has(value) && fits(value)).map((value): Option => ({
    text: value, beside: key.of === null ? '' : 'no span', adds: [name, value],
  }))
  const none: Option[] = key.none && !typed ? [{ text: '(none)', beside: `spans without ${key.label}`, adds: [name, ''] }] : []
  return [...listed, ...choices, ...none]
}
