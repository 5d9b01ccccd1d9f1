import { expect, test } from 'vitest'
import { filtersOf } from '../src/api/sessions'
import { held } from '../src/core/held'
import { Params } from '../src/core/params'

test('filters of an address are parameters of the API, and what is given twice stays so', () => {
  const params = new Params([['label', 'a b'], ['userId', ''], ['minCost', '0.1'], ['order', 'cost'], ['page', '2'], ['window', '1h'], ['label', 'c']])
  expect(filtersOf(params, { since: '2026-03-15T14:00:00Z' })).toEqual([
    ['label', 'a b'], ['label', 'c'], ['userId', ''], ['minCost', '0.1'], ['from', '2026-03-15T14:00:00Z'],
  ])
  expect(filtersOf(new Params(), {})).toEqual([])
})

test('rows that are read stay where they are, with their newest values', () => {
  const id = (row: { id: string }) => row.id
  const before = [{ id: 'a', cost: 1 }, { id: 'b', cost: 1 }]
  const fresh = [{ id: 'c', cost: 1 }, { id: 'b', cost: 5 }, { id: 'a', cost: 2 }]
  expect(held(before, fresh, id)).toEqual({ rows: [{ id: 'a', cost: 2 }, { id: 'b', cost: 5 }], news: 1 })
  expect(held(null, fresh, id)).toEqual({ rows: fresh, news: 0 })
  expect(held([], fresh, id)).toEqual({ rows: fresh, news: 0 })
  expect(held(before, [], id)).toEqual({ rows: before, news: 0 })
})
