import { describe, expect, test } from 'vitest'
import {
  chips, filtersOf, filtersOfSpans, METRIC_FILTERS, parseTyped, parseValue, plus, repeated, TRACE_FILTERS, unknown, within, without, words,
  type FilterSet,
} from '../src/core/filter'
import { keyOptions, valueOptions } from '../src/core/filter_menu'
import { Params } from '../src/core/params'

const PARAMS = new Params([
  ['model', 'gpt-4o'], ['window', '1h'], ['attr.team', 'a'], ['attr.', 'x'], ['colour', 'red'], ['cursor', 'c'], ['window', '6h'],
  ['not.caller', ''], ['model', 'gpt-4'], ['min_cost', '0.01'], ['not.min_cost', '1'],
])
const SESSIONS: FilterSet = {
  keys: [
    { name: 'userId', label: 'user', kind: 'value', of: 'user_id' },
    { name: 'status', label: 'status', kind: 'choice', choices: ['active', 'completed'], of: null },
  ],
  attributes: false, excluded: false, several: false, own: ['page'],
}
const key = (name: string) => TRACE_FILTERS.keys.find((each) => each.name === name)!

describe('the filters of an address', () => {
  test('are shown together by name, and what is not understood is told', () => {
    expect(chips(PARAMS).map(({ name, value, not }) => [name, value, not])).toEqual([
      ['model', 'gpt-4o', false], ['model', 'gpt-4', false], ['attr.team', 'a', false], ['not.caller', '', true], ['min_cost', '0.01', false],
    ])
    expect(unknown(PARAMS)).toEqual(['attr.', 'colour', 'not.min_cost'])
    expect(repeated(PARAMS)).toEqual(['window'])
  })

  test('are said in words', () => {
    expect(chips(PARAMS).map((chip) => Object.values(words(chip)).join(' '))).toEqual([
      'model = gpt-4o', 'model = gpt-4', 'attr.team = a', 'caller ≠ (none)', 'cost ≥ $0.01',
    ])
    const typed = new Params([['max_latency', '1500'], ['min_tokens', 'many'], ['q', 'rate']])
    expect(chips(typed).map((chip) => Object.values(words(chip)).join(' '))).toEqual([
      'latency ≤ 1.50 s', 'tokens ≥ many', 'name or error contains “rate”',
    ])
  })

  test('that count once are sent once, and are told', () => {
    const twice = new Params([['model', 'a'], ['model', 'b'], ['min_cost', '1'], ['min_cost', '2']])
    expect(filtersOf(twice)).toEqual([['model', 'a'], ['model', 'b'], ['min_cost', '1']])
    expect(repeated(twice)).toEqual(['min_cost'])
    expect(filtersOf(twice, METRIC_FILTERS)).toEqual([['model', 'a']])
    expect(repeated(twice, METRIC_FILTERS)).toEqual(['model'])
    expect(unknown(twice, METRIC_FILTERS)).toEqual(['min_cost'])
  })

  test('are asked of the spans under the names that the API has for them', () => {
    expect(filtersOfSpans(PARAMS, TRACE_FILTERS, 'model')).toEqual([['attr.team', 'a'], ['not.caller', ''], ['min_cost', '0.01']])
    expect(filtersOfSpans(new Params([['userId', 'u'], ['status', 'active']]), SESSIONS, '')).toEqual([['user_id', 'u']])
    expect(filtersOfSpans(new Params([['kind', 'all'], ['model', 'a']]), METRIC_FILTERS, '')).toEqual([['model', 'a']])
  })

  test('change, and the list begins anew', () => {
    expect(without(PARAMS, 'model', 'gpt-4o').all('model')).toEqual(['gpt-4'])
    expect(without(PARAMS, 'model').has('cursor')).toBe(false)
    expect(plus(PARAMS, TRACE_FILTERS, 'model', 'o3').all('model')).toEqual(['gpt-4o', 'gpt-4', 'o3'])
    expect(plus(PARAMS, TRACE_FILTERS, 'min_cost', '2').all('min_cost')).toEqual(['2'])
    expect(plus(PARAMS, METRIC_FILTERS, 'model', 'o3').all('model')).toEqual(['o3'])
    expect(plus(PARAMS, TRACE_FILTERS, 'model', 'o3').has('cursor')).toBe(false)
  })
})

test.each([
  ['model=gpt-4o', ['model', 'gpt-4o']], ['rate limit', ['q', 'rate limit']], [' attr.team = a=b ', ['attr.team', 'a=b']],
  ['model=', ['model', '']], ['model!=a', ['not.model', 'a']], ['attr.team≠a', ['not.attr.team', 'a']], ['cost>=0.01', ['min_cost', '0.01']],
  ['latency <= 1.5s', ['max_latency', '1500']], ['tokens≥1,000', ['min_tokens', '1000']], ['min_cost=$2', ['min_cost', '2']],
  ['user=u-7', ['user_id', 'u-7']], ['not.model=a', ['not.model', 'a']],
])('%j is a filter', (text, pair) => expect(parseTyped(text, TRACE_FILTERS)).toEqual(pair))

test.each([
  ['colour=red', /^colour: is no filter; filters are status, /], ['  ', /^write /], ['attr.=x', /^attr\.: /], ['cost=1', /^cost: is no filter/],
  ['cost>=much', /^cost ≥ “much” is no amount of US dollars/], ['latency>=-1', /no amount of time/], ['cost!=1', /^cost: /],
])('%j is none', (text, why) => expect(parseTyped(text, TRACE_FILTERS)).toMatch(why))

test('a text without a name is none where nothing looks for texts', () => {
  expect(parseTyped('gpt', METRIC_FILTERS)).toMatch(/^gpt: write name=value/)
  expect(parseTyped('model!=a', METRIC_FILTERS)).toMatch(/^model: is no filter/)
})

test('an amount is read in the units that people write', () => {
  expect(parseValue(key('min_latency'), '200ms')).toBe('200')
  expect(parseValue(key('min_latency'), '2m30s')).toBe('150000')
  expect(parseValue(key('max_cost'), '')).toHaveProperty('problem')
})

test('a range is asked as the API has it', () => {
  expect(within({ kind: 'all' })).toEqual([])
  expect(within({ kind: 'window', window: '1h', ms: 3.6e6 })).toEqual([['window', '1h']])
  expect(within({ kind: 'fixed', from: 'a', to: 'b' })).toEqual([['since', 'a'], ['until', 'b']])
})

describe('what the field offers', () => {
  const held = [{ key: 'team', types: ['text'], count: 12 }, { key: 'model_version', types: ['number'], count: 3 }]
  const texts = (typed: string) => keyOptions(TRACE_FILTERS, held, typed).options.map(({ text }) => text)

  test('are all keys first, and no key is taken by Enter', () => {
    expect(texts('').slice(0, 3)).toEqual(['status', 'model', 'caller'])
    expect(texts('').slice(-2)).toEqual(['attr.team', 'attr.model_version'])
    expect(keyOptions(TRACE_FILTERS, held, '').first).toBe(-1)
  })

  test('is the key that begins so, then the text itself, then what contains it', () => {
    expect(texts('mod')).toEqual(['model', 'name or error contains “mod”', 'attr.model_version'])
    expect(texts('tea')).toEqual(['name or error contains “tea”', 'attr.team'])
    expect(keyOptions(TRACE_FILTERS, held, 'mod').first).toBe(0)
  })

  test('is only the filter that a text is', () => expect(texts('model=a')).toEqual(['model = a']))

  test('never depends on what was loaded, as to what Enter takes', () => {
    for (const typed of ['', 'm', 'mod', 'team', 'model=a', 'colour=red']) {
      const [late, early] = [keyOptions(TRACE_FILTERS, held, typed), keyOptions(TRACE_FILTERS, [], typed)]
      expect(late.options[late.first]).toEqual(early.options[early.first])
    }
  })

  test('are values with counts, choices that no span has, and spans without one', () => {
    const at = '2026-03-15T14:00:00Z'
    const values = [{ value: 'ok', count: 1234, last_started_at: at }]
    const shown = valueOptions(key('status'), 'status', values, '', Date.parse(at) + 180_000)
    expect(shown.map(({ text, beside }) => [text, beside])).toEqual([
      ['ok', '1,234 spans, last 3m 0s ago'], ['error', 'no span'], ['timeout', 'no span'],
    ])
    expect(valueOptions(key('status'), 'status', values, 'ER', 0).map(({ text }) => text)).toEqual(['error'])
    expect(valueOptions(key('model'), 'not.model', [], '', 0)).toEqual([
      { text: '(none)', beside: 'spans without model', adds: ['not.model', ''] },
    ])
    expect(valueOptions(SESSIONS.keys[1]!, 'status', [], '', 0).map(({ beside }) => beside)).toEqual(['', ''])
  })
})
