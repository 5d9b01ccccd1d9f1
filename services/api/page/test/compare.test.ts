import { describe, expect, it } from 'vitest'
import { choiceOf, exchanged, overlaid, valuesOf, withoutSides, withValues } from '../src/core/compare'
import { Params } from '../src/core/params'
import { changeText } from '../src/core/shape'
import { matched } from '../src/core/tracepairs'
import { treeOf, type Row } from '../src/core/tree'

const params = (text: string) => new Params(new URLSearchParams(text))
const shown = (given: Params | null) => given && new URLSearchParams([...given].map(([name, value]) => [name, value])).toString()

describe('the other side in an address', () => {
  it.each([
    ['', 'before'], ['compare=yesterday', 'yesterday'], ['compare=banana', 'before'],
    ['compare_from=2026-03-15T14:00:00Z', 'time'], ['model=a&compare.model=b', 'values'],
  ])('%s compares with %s', (text, choice) => expect(choiceOf(params(text))).toBe(choice))

  it('is replaced as a whole', () => {
    const values = withValues(params('window=1h&caller=x&compare=before'), 'attr.version', '1', '2')
    expect(shown(values)).toBe('window=1h&caller=x&attr.version=1&compare.attr.version=2')
    expect(valuesOf(values)).toEqual({ key: 'attr.version', a: '1', b: '2' })
    expect(shown(withoutSides(values))).toBe('window=1h&caller=x')
    expect(shown(withoutSides(params('compare_from=a&compare_to=b&model=c')))).toBe('model=c')
  })

  it('is exchanged where both sides are named', () => {
    expect(shown(exchanged(params('model=a&compare.model=b')))).toBe('model=b&compare.model=a')
    const times = exchanged(params('from=1&to=2&compare_from=3&compare_to=4'))
    expect(shown(times)).toBe('from=3&to=4&compare_from=1&compare_to=2')
    expect(exchanged(params('window=1h&compare=before'))).toBeNull()
  })
})

describe('overlaid points', () => {
  const point = (at: number, value = at) => ({ at, value, partial: false })

  it('come to the places of the nearest steps, each once', () => {
    const now = [point(1003), point(1010), point(1020), point(1030)]
    const before = [point(901), point(910), point(920), point(940)]
    expect(overlaid(now, before, 100, 10)).toEqual([
      { at: 1003, value: 901, partial: false }, { at: 1010, value: 910, partial: false }, { at: 1020, value: 920, partial: false },
    ])
  })

  it('are at most as many as there are steps', () => {
    expect(overlaid([point(10)], [point(1), point(2)], 9, 10).length).toBe(1)
    expect(overlaid([], [point(1)], 0, 10)).toEqual([])
  })
})

describe('two traces', () => {
  const row = (id: string, parent: string | null, name: string, more: Partial<Row> = {}): Row => ({
    span_id: id, parent_span_id: parent, name, kind: 'llm', start_ms: 0, duration_ms: 10, status: 'ok', model: null, cost_usd: 0.001,
    counted: true, total_tokens: null, ttft_ms: null, caller: null, score: null, ...more,
  })

  it('are matched by the names on the way', () => {
    const a = treeOf([row('1', null, 'agent', { counted: false }), row('2', '1', 'search'), row('3', '1', 'search'), row('4', '3', 'answer')])
    const b = treeOf([row('9', null, 'agent', { counted: false }), row('8', '9', 'plan'), row('7', '9', 'search', { status: 'error', cost_usd: null })])
    const found = matched(a, b)
    expect(found.map(({ name, level, a: left, b: right }) => [name, level, left?.spans ?? 0, right?.spans ?? 0])).toEqual([
      ['agent', 0, 1, 1], ['search', 1, 2, 1], ['answer', 2, 1, 0], ['plan', 1, 0, 1],
    ])
    expect(found[0]!.a!.nusd).toBe(3_000_000)
    expect(found[1]!.b).toEqual({ spans: 1, failed: 1, ms: 10, nusd: 0, unpriced: 1 })
    expect(found[1]!.a!.ms).toBe(20)
  })

  it('do not recurse', () => {
    const chain = treeOf(Array.from({ length: 20_000 }, (_, at) => row(`${at}`, at ? `${at - 1}` : null, `step ${at}`)))
    expect(matched(chain, treeOf([])).length).toBe(20_000)
  })
})

describe('a change in words', () => {
  it.each([
    [{ absolute: 6.1, ratio: 0.17 }, 'usd', '▲ +$6.10 (+17.0 %)'],
    [{ absolute: -1200, ratio: -0.07 }, 'milliseconds', '▼ −1.20 s (−7.00 %)'],
    [{ absolute: 0.0038, ratio: 0.2 }, 'share', '▲ +0.380 pp (+20.0 %)'],
    [{ absolute: 3, ratio: null }, 'spans', '▲ +3 (new)'],
    [{ absolute: 0, ratio: 0 }, 'usd', 'unchanged'],
    [{ absolute: null, ratio: null }, 'usd', 'no data'],
  ] as const)('%j in %s is %s', (leaf, unit, text) => expect(changeText(leaf, unit)).toBe(text))
})
