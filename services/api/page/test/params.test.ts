import { expect, test } from 'vitest'
import { Params } from '../src/core/params'

const PARAMS = new Params([['a', '1'], ['b', '2'], ['a', '3']])

test('the first value of a name, all of them, and every name once', () => {
  expect([PARAMS.get('a'), PARAMS.get('c')]).toEqual(['1', undefined])
  expect([PARAMS.all('a'), PARAMS.all('c')]).toEqual([['1', '3'], []])
  expect(PARAMS.names()).toEqual(['a', 'b'])
  expect([PARAMS.has('b'), PARAMS.has('constructor')]).toEqual([true, false])
})

test('changes keep the other parameters and their order', () => {
  expect([...PARAMS.with({ b: null, a: '4', d: '5', e: null })]).toEqual([['a', '4'], ['d', '5']])
  expect([...PARAMS]).toEqual([['a', '1'], ['b', '2'], ['a', '3']])
})

test('a value is added once, and removed alone or with the others of its name', () => {
  expect([...PARAMS.plus('a', '3')]).toEqual([...PARAMS])
  expect([...PARAMS.plus('b', '3')].at(-1)).toEqual(['b', '3'])
  expect([...PARAMS.without('a', '1')]).toEqual([['b', '2'], ['a', '3']])
  expect([...PARAMS.without('a')]).toEqual([['b', '2']])
})
