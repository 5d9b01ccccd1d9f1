import { expect, test } from 'vitest'
import { Params } from '../src/core/params'
import { foldedTo, hitsOf, idOf, misunderstood, most, revealed, rowOf, shower, toggled, unfolded, viewOf, zoomedTo } from '../src/core/spanstate'
import { isHidden, treeOf, type Row } from '../src/core/tree'

function row(span_id: string, parent_span_id: string | null, more: Partial<Row> = {}): Row {
  return {
    span_id, parent_span_id, start_ms: 0, duration_ms: 10, name: span_id, kind: 'llm', status: 'ok', model: null, cost_usd: null, counted: true,
    total_tokens: null, ttft_ms: null, caller: null, score: null, ...more,
  }
}
const tree = treeOf([row('r', null), row('a', 'r'), row('a1', 'a'), row('b', 'r'), row('b1', 'b'), row('b11', 'b1')])
const show = shower(tree)
const shown = (params: Params) => show(params).rows.map((index) => tree.rows[index]!.span_id).join(' ')
const at = (id: string) => rowOf(tree, id)
const none = new Params([['model', 'gpt-4o']])

test('a depth and single folds are kept in the address, and taken out of it again', () => {
  const deep = foldedTo(none, 2)
  expect(shown(deep)).toBe('r a b')
  const open = toggled(deep, tree, at('b'), true)
  expect(shown(open)).toBe('r a b b1')
  expect([...open]).toEqual([['model', 'gpt-4o'], ['fold', 'depth:2'], ['unfolded', 'b']])
  expect([...toggled(open, tree, at('b'), false)]).toEqual([...deep])
  const one = toggled(none, tree, at('a'), false)
  expect(shown(one)).toBe('r a b b1 b11')
  expect([...toggled(one, tree, at('a'), true)]).toEqual([...none])
  expect([...unfolded(open)]).toEqual([...none])
})

test('whatever is folded by whatever keys, the address alone shows the same', () => {
  let seed = 3
  const random = (limit: number) => (seed = (seed * 1103515245 + 12345) % 2147483648) % limit
  for (let round = 0; round < 100; round++) {
    let params = none
    for (let step = 0; step < 8; step++) {
      const index = random(6)
      const closed = show(params).closed
      if (random(4) === 0) params = foldedTo(params, 1 + random(3))
      else if (tree.children[index]!.length) {
        params = toggled(params, tree, index, closed.has(index))
        expect(show(params).closed.has(index)).toBe(!closed.has(index))
      }
      const target = random(6)
      const seen = revealed(params, tree, show(params).closed, target)
      expect(isHidden(tree, show(seen).closed, target)).toBe(false)
      expect(shower(tree)(new Params([...params])).rows).toEqual(show(params).rows)
    }
  }
})

test('a row that is deep within a folded chain is shown by unfolding all', () => {
  const chain = treeOf(Array.from({ length: 3000 }, (_, index) => row(`s${index}`, index ? `s${index - 1}` : null)))
  const showChain = shower(chain)
  const folded = foldedTo(none, 1)
  expect([...revealed(folded, chain, showChain(folded).closed, 2999)]).toEqual([...none])
})

test('a zoom is kept in the address within the trace, and the whole trace is no zoom', () => {
  const whole = { from: 0, to: 1000 }
  expect(viewOf(zoomedTo(none, { from: 1.5, to: 20.25 }, whole), whole)).toEqual({ from: 1.5, to: 20.25 })
  expect(zoomedTo(zoomedTo(none, { from: 1, to: 2 }, whole), whole, whole).has('zoom')).toBe(false)
  for (const wrong of ['', '5', '9-3', 'a-b', '2000-3000', '-1-5']) expect(viewOf(none.with({ zoom: wrong }), whole)).toEqual(whole)
  expect(viewOf(none.with({ zoom: '900-5000' }), whole)).toEqual({ from: 900, to: 1000 })
})

test('what is not understood is named with why, and nothing else is', () => {
  expect(misunderstood(none)).toEqual([])
  const wrong = misunderstood(new Params([['tab', 'x'], ['fold', '2'], ['zoom', '1'], ['by', 'name'], ['model', 'y']]))
  expect(wrong.map(([name]) => name)).toEqual(['tab', 'fold', 'zoom', 'by'])
  expect(wrong[1]![1]).toContain("'2' is not depth:")
})

test('names, models, callers and ids are searched, and hits are from top to bottom', () => {
  const found = treeOf([row('r', null, { name: 'Answer' }), row('x', 'r', { model: 'ANSWER-1' }), row('y', 'r', { caller: 'answers' }), row('z', 'r')])
  expect([...hitsOf(found, ' answer ')]).toEqual([0, 1, 2])
  expect([...hitsOf(found, 'z')]).toEqual([3])
  expect(hitsOf(found, '  ').size).toBe(0)
})

test('rows of several traces have different names in an address', () => {
  const both = treeOf([row('a', null, { trace_id: 't1' }), row('a', null, { trace_id: 't2' })])
  expect(both.rows.map((each) => rowOf(both, idOf(each)))).toEqual([0, 1])
})

test('the dearest is a leaf, and there may be none', () => {
  const costs = treeOf([row('r', null, { cost_usd: 9 }), row('a', 'r', { cost_usd: 1 }), row('b', 'r', { cost_usd: 2 })])
  expect(most(costs, (each) => each.cost_usd)).toBe(2)
  expect(most(tree, (each) => each.cost_usd)).toBe(-1)
})
