import { describe, expect, it } from 'vitest'
import type { RuleState } from '../src/api/alerts'
import {
  byUrgency, conditionOf, deliverySign, draftOf, errorOf, NEW_RULE, outcomeText, prefilled, ruleOf, signOf, tracesOf, unitOf, valueOf, whyOf, yamlOf,
} from '../src/core/alerts'
import { Params } from '../src/core/params'

const RULE = {
  name: 'slow', metric: 'latency_p95', op: 'gt', threshold: 3000, window: '5m', current_value: 2140, firing: false, silenced: false, held_back: 0,
  level: 'warning', filter: {}, min_spans: 20, cooldown: '10m', for: '0s', group_by: null, change: null, span_count: 12, state: 'inactive',
  why_not_fired: 'ok', last_evaluated: '2026-03-15T14:23:00.000Z', last_delivery: null,
} as unknown as RuleState

describe('the sign of a rule', () => {
  it('says its state without the colour', () => {
    const signs = [
      signOf({ ...RULE, state: 'firing', firing: true, level: 'critical' }), signOf({ ...RULE, state: 'firing', firing: true }),
      signOf({ ...RULE, silenced: true, firing: true }), signOf({ ...RULE, silenced: true }), signOf({ ...RULE, state: 'pending' }),
      signOf({ ...RULE, state: 'warming' }), signOf({ ...RULE, state: 'no_data' }), signOf({ ...RULE, state: 'resolved' }), signOf(RULE),
    ]
    expect(signs.map(({ sign, word }) => `${sign} ${word}`)).toEqual([
      '● firing, critical', '● firing, warning', '◐ silenced, would fire', '◐ silenced', '◔ pending', '○ warming up', '◌ no data', '✓ resolved', '✓ ok',
    ])
  })

  it('orders what is urgent first', () => {
    const rules = [
      { ...RULE, name: 'b' }, { ...RULE, name: 'a' }, { ...RULE, name: 'warns', state: 'firing', firing: true },
      { ...RULE, name: 'dead', last_delivery: { outcome: 'dead' } }, { ...RULE, name: 'critical', state: 'firing', level: 'critical' },
      { ...RULE, name: 'quiet', silenced: true, firing: true, state: 'firing' }, { ...RULE, name: 'pending', state: 'pending' },
    ] as RuleState[]
    expect(byUrgency(rules).map((rule) => rule.name)).toEqual(['critical', 'warns', 'pending', 'quiet', 'dead', 'a', 'b'])
  })
})

describe('words', () => {
  it('tell why a rule did not fire', () => {
    const why = (reason: string | null, more: Partial<RuleState> = {}) => whyOf({ ...RULE, why_not_fired: reason, ...more }, 'milliseconds')
    expect(why('ok')).toBe('The condition does not hold: 2.14 s is not > 3.00 s.')
    expect(why('min_spans')).toBe('Only 12 spans in the window; the rule needs 20 (min_spans).')
    expect(why('silenced', { held_back: 1 })).toBe('The condition holds, but the rule is silenced. It has held back 1 firing.')
    expect(why('silenced', { held_back: 3 })).toContain('3 firings')
    expect(why('pending', { for: '2m' })).toBe('The condition holds, but not for 2m yet (for).')
    expect(why('cooldown')).toContain('less than 10m ago')
    expect(why('no_data')).toContain('no value')
    expect(why('warming')).toContain('does not cover the whole window')
    expect(why(null)).toBe('The last evaluation published an event.')
    expect(why(null, { last_evaluated: null })).toBe('The rule has not been evaluated yet.')
    expect(why('a later reason\u202e')).toBe('a later reason\\u202e')
  })

  it('say what is watched', () => {
    expect(conditionOf(RULE, 'milliseconds')).toBe('latency_p95 of the last 5m > 3.00 s')
    expect(conditionOf({ ...RULE, for: '2m', group_by: 'user_id', filter: { model: 'gpt-4o', 'attr.team': '' } }, 'milliseconds'))
      .toBe('latency_p95 of the last 5m > 3.00 s, for 2m, for each user_id, only model = gpt-4o, only attr.team = (none)')
    expect(conditionOf({ ...RULE, change: 'percent', threshold: 50, metric: 'total_cost' }, 'usd')).toBe('change of total_cost against the 5m before > 50.0 %')
  })

  it('show a value in the unit of its metric, and a change in percent as percent', () => {
    const metrics = [{ name: 'total_cost', unit: 'usd' as const }]
    expect(unitOf('total_cost', metrics)).toBe('usd')
    expect(unitOf('attr.docs:count', metrics)).toBe('count')
    expect(unitOf('attr.docs:avg', metrics)).toBe('any')
    expect(unitOf('gone', metrics)).toBe('any')
    expect(valueOf(13.5, RULE, 'usd')).toBe('$13.50')
    expect(valueOf(12.5, { change: 'percent' }, 'usd')).toBe('12.5 %')
    expect(valueOf(null, { change: 'percent' }, 'usd')).toBe('no data')
  })

  it('tell what became of deliveries', () => {
    const last = { in_a_row: 5, attempts: 13, error: 'HTTP 500', at: '' }
    expect(deliverySign({ ...last, outcome: 'dead' })).toEqual({ sign: '✕', word: 'dead 5×', tone: 'error' })
    expect(deliverySign({ ...last, outcome: 'delivered', in_a_row: 1 }).word).toBe('delivered')
    expect(deliverySign({ ...last, outcome: 'retry', attempts: 3 }).word).toBe('failed 3×, tried again')
    expect(deliverySign({ ...last, outcome: 'expired' }).word).toBe('expired 5×')
    expect(outcomeText({ outcome: 'dead', attempts: 13 }).word).toBe('dead after 13 attempts')
    expect(outcomeText({ outcome: 'dead', attempts: 1 }).word).toBe('dead after 1 attempt')
    expect(outcomeText({ outcome: 'delivered', attempts: 1 }).word).toBe('delivered')
    expect(outcomeText({ outcome: 'delivered', attempts: 2 }).word).toBe('delivered after 2 attempts')
    expect(['none', 'pending', 'retry', 'expired', 'unknown'].map((outcome) => outcomeText({ outcome, attempts: 2 }).sign)).toEqual(['–', '…', '…', '◷', '?'])
  })
})

it('the traces of a rule are those of its window, its filter and one instance', () => {
  const rule = { ...RULE, filter: { model: 'gpt-4o', team: 'search', 'attr.x': 'y' }, group_by: 'user_id' }
  expect(tracesOf(rule, 'ann', Date.parse('2026-03-15T14:23:00Z'))).toEqual([
    ['model', 'gpt-4o'], ['attr.team', 'search'], ['attr.x', 'y'], ['user_id', 'ann'],
    ['from', '2026-03-15T14:18:00.000Z'], ['to', '2026-03-15T14:23:00.000Z'],
  ])
  expect(tracesOf(rule, null, 0).map(([name]) => name)).not.toContain('user_id')
})

it.each([
  ["rule.metric: 'x' is none of total_cost", 'metric'], ['rule.delivery.url: required', 'delivery.url'], ['rule.delivery.headers.X-A: is twice', 'delivery.headers'],
  ['rule.filter.model: is not text', 'filter'], ['rule.for: ‘x’ is no duration', 'for'], ["a rule is called 'slow' already", 'name'],
  ['rule: not an object', ''], ['no alerter answers', ''], ['rule.threshold: required', 'threshold'],
])('the field of %s is %s', (text, field) => {
  expect(errorOf(text)).toEqual({ field, text })
})

describe('a rule as a form has it', () => {
  const full = {
    name: 'slow', metric: 'total_cost', op: 'gte', threshold: 0.5, window: '1h', eval_interval: '30s', cooldown: '10m', min_spans: 20, level: 'critical',
    filter: { model: 'gpt-4o', 'attr.team': 'search' }, silenced: true, for: '2m', recovery_threshold: 0.25, no_data: 'keep', unpriced: 'fire',
    group_by: 'user_id', change: 'absolute',
    delivery: {
      type: 'webhook', url: 'https://hooks.example.com/...', timeout: '2s', headers: { 'X-Key': '<hidden>' }, max_retries: 3, send_resolved: true,
      secret: '<hidden>', format: 'alertmanager',
    },
  }

  it('is the same rule again, with every field', () => {
    expect(ruleOf(draftOf(full))).toEqual(full)
    for (const delivery of [{ type: 'stdout' }, { type: 'alertmanager', url: 'http://am:9093' }]) {
      expect(ruleOf(draftOf({ ...full, delivery }))).toEqual({ ...full, delivery })
    }
  })

  it('has no fields that are empty, and sends what is no number as it is', () => {
    const draft = { ...NEW_RULE, texts: { ...NEW_RULE.texts, threshold: ' 5 ', min_spans: 'many', for: '', silenced: '' } }
    expect(ruleOf(draft)).toEqual({ op: 'gt', window: '5m', level: 'warning', threshold: 5, min_spans: 'many' })
    expect(ruleOf({ ...NEW_RULE, texts: { 'delivery.url': 'http://x', 'delivery.type': 'stdout' } })).toEqual({ delivery: { type: 'stdout' } })
    expect(draftOf({ op: '>', threshold: 1 }).texts.op).toBe('gt')
  })

  it('begins with what an address says', () => {
    const draft = prefilled(new Params([['new', '1'], ['metric', 'total_cost'], ['groupby', 'user_id'], ['model', 'gpt-4o'], ['attr.team', 'a'], ['window', '1h'], ['kind', 'all']]))
    expect(ruleOf(draft)).toEqual({
      op: 'gt', window: '1h', level: 'warning', metric: 'total_cost', group_by: 'user_id', filter: { model: 'gpt-4o', 'attr.team': 'a' },
    })
  })
})

it('YAML quotes whatever could be something else', () => {
  expect(yamlOf({ name: 'a: b', metric: 'total_cost', op: '>', threshold: 5, level: 'no', silenced: true, filter: { model: 'x\u2028\n"', '5': '5' }, none: null, empty: {} })).toBe(
    'alerts:\n  - name: "a: b"\n    metric: total_cost\n    op: ">"\n    threshold: 5\n    level: "no"\n    silenced: true\n    filter:\n'
    + '      "5": "5"\n      model: "x\\u2028\\n\\""\n    empty: {}\n',
  )
})
