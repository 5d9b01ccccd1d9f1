import { expect, test } from 'vitest'
import { address, parseRoute } from '../src/core/route'

const PAGES = ['trace', 'session', 'rule', 'metric'] as const

test.each(['t1', 'a/b', 'ü %?#&=+', '%41', '..', '👩‍💻', ' '])('the address of the thing %j leads to it', (id) => {
  for (const page of PAGES) {
    const route = parseRoute(address(page, id, [['span', id], ['model', 'a&b=c'], ['model', '']]))
    expect([route.page, route.id]).toEqual([page, id])
    expect([...route.params]).toEqual([['span', id], ['model', 'a&b=c'], ['model', '']])
  }
})

test.each(['overview', 'traces', 'compare', 'sessions', 'alerts', 'health', 'login'] as const)('the address of the page %s leads to it', (page) => {
  expect(parseRoute(address(page))).toMatchObject({ page, id: '' })
})

test.each([
  ['', 'overview', ''], ['#', 'overview', ''], ['#/', 'overview', ''], ['#/?window=1h', 'overview', ''], ['#/traces', 'traces', ''],
  ['#/traces/', 'traces', ''], ['#/traces?model=x', 'traces', ''], ['#/login', 'login', ''], ['#/login/x', 'missing', 'login/x'],
  ['#/metric', 'missing', 'metric'], ['#/nothing/x', 'missing', 'nothing/x'], ['#/constructor', 'missing', 'constructor'],
  ['#/traces/%', 'trace', '%'],
])('%j is the page %s', (hash, page, id) => expect([parseRoute(hash).page, parseRoute(hash).id]).toEqual([page, id]))
