import { expect, test } from 'vitest'
import type { ListedTrace } from '../src/api/types'
import { ALL_COLUMNS, attributesOf, columnOf, columnsOf, unknownColumns, valuesOf, withColumn } from '../src/core/columns'
import { Params } from '../src/core/params'

const ids = (params: Params) => columnsOf(params).map(({ id }) => id)
const NONE = new Params()

test('an address without columns has the usual ones, and the usual ones need no parameter', () => {
  expect(ids(NONE)).toContain('models')
  expect(ids(NONE)).not.toContain('score')
  const more = withColumn(NONE, 'score', true)
  expect(ids(more)).toEqual([...ids(NONE), 'score'])
  expect([...withColumn(more, 'score', false)]).toEqual([])
})

test('columns keep their order, attributes come last, and the name stays', () => {
  const params = withColumn(withColumn(withColumn(NONE, 'attr.team', true), 'caller', true), 'attr.a,b', true)
  const shown = ids(params)
  expect(shown.indexOf('caller')).toBe(shown.indexOf('models') + 1)
  expect(shown.slice(-2)).toEqual(['attr.team', 'attr.a,b'])
  expect(attributesOf(columnsOf(params))).toEqual(['team', 'a,b'])
  expect(ids(withColumn(NONE, 'name', false))).toContain('name')
  expect(ids(new Params([['columns', 'cost'], ['columns', 'cost']]))).toEqual(['name', 'cost'])
})

test('a column that there is not is told', () => {
  const params = new Params([['columns', 'colour'], ['columns', 'attr.'], ['columns', 'name']])
  expect(unknownColumns(params)).toEqual(['colour', 'attr.'])
  expect(ids(params)).toEqual(['name'])
})

test('a cell filters by what it shows', () => {
  const trace = {
    name: 'plan', status: 'ok', models: ['a', 'b'], caller: null, user_id: 'u', session_id: 's', attributes: { team: 'blue', empty: null },
  } as unknown as ListedTrace
  const of = (id: string) => valuesOf(columnOf(id)!, trace)
  expect(of('models')).toEqual(['a', 'b'])
  expect(of('caller')).toEqual([''])
  expect([of('attr.team'), of('attr.empty'), of('attr.none'), of('cost')]).toEqual([['blue'], [], [], []])
  expect(ALL_COLUMNS.every((id) => columnOf(id))).toBe(true)
})
