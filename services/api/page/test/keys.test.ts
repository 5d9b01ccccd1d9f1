import { expect, test } from 'vitest'
import { actionOf, keysOf, type Key } from '../src/core/keys'

const press = (key: string, more: Partial<Key> = {}): Key => ({ key, ctrl: false, alt: false, meta: false, inField: false, ...more })

test.each([
  ['j', 'trace', 'down'], ['ArrowDown', 'list', 'down'], ['e', 'trace', 'nextError'], ['E', 'trace', 'previousError'], ['3', 'trace', 'depth:3'],
  ['0', 'trace', 'whole'], ['+', 'trace', 'zoomIn'], ['-', 'trace', 'zoomOut'], ['p', 'trace', 'critical'], ['p', 'list', null], ['$', 'trace', 'dearest'], ['$', 'traces', 'dearest'], ['s', 'traces', 'slowest'], ['s', 'list', null], ['$', 'overview', 'dearest'], ['s', 'calls', 'slowest'], ['j', 'calls', 'down'], ['j', 'overview', null], ['Enter', 'trace', 'open'], ['?', 'list', 'help'], ['l', 'list', 'live'],
  ['l', 'trace', null], ['3', 'list', null], ['e', 'list', null], ['constructor', 'list', null],
  ['[', 'list', 'older'], ['[', 'trace', 'foldAll'], ['j', 'page', null], ['z', 'page', 'undoZoom'],
] as const)('%s on a %s is %s', (key, context, action) => expect(actionOf(press(key), context)).toBe(action))

test('no key does anything in a field, but Escape leaves it', () => {
  for (const [key] of keysOf('trace')) if (key !== 'Escape') expect(actionOf(press(key, { inField: true }), 'trace')).toBeNull()
  expect(actionOf(press('Escape', { inField: true }), 'trace')).toBe('close')
})

test('shortcuts of the browser stay its own', () => {
  for (const held of ['ctrl', 'alt', 'meta']) expect(actionOf(press('r', { [held]: true }), 'list')).toBeNull()
})

test('g and a letter go to a page', () => {
  expect(actionOf(press('t'), 'trace', 'g')).toBe('go:traces')
  expect(actionOf(press('o'), 'page', 'g')).toBe('go:overview')
  expect(actionOf(press('j'), 'trace', 'g')).toBeNull()
})
