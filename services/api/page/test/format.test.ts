import { describe, expect, test } from 'vitest'
import { amount, bytes, change, count, cut, duration, exactAmount, exactMoney, money, noun, plain, quantileError, score, share, sum, type Unit } from '../src/core/format'

describe('money', () => {
  test.each([
    [0, '$0'], [1e-9, '$0.000000001'], [0.00017865, '$0.000179'], [0.0026, '$0.0026'], [19.8146, '$19.81'],
    [1234567.891, '$1,234,567.89'], [0.5, '$0.50'], [0.9999, '$1.00'], [0.999, '$0.999'], [1, '$1.00'], [4e-10, '$0.0000000004'],
    [0.01, '$0.01'], [0.0099999, '$0.01'], [-6.1, '−$6.10'], [-0.0026, '−$0.0026'],
  ])('%d is %s', (usd, text) => expect(money(usd)).toBe(text))
  test('an unknown cost is never 0', () => expect(money(null)).toBe('unpriced'))
  test('nothing that costs something is shown as $0', () => {
    for (let exponent = -20; exponent < 7; exponent++) {
      for (const digit of [1, 4.9999, 9.99]) expect(money(digit * 10 ** exponent)).toMatch(/[1-9]/)
    }
  })
  test('hovering shows all nine digits', () => expect(exactMoney(0.00017865)).toBe('$0.000178650'))
})

test.each([
  [84.08, 1229, '$84.08 + 1,229 unpriced'], [84.08, 0, '$84.08'], [null, 3, '3 unpriced'], [0, 2, '$0 + 2 unpriced'],
])('the sum of %s and %s unpriced', (usd, unpriced, text) => expect(sum(usd, unpriced)).toBe(text))

test.each([
  [945.137, '945 ms'], [1240, '1.24 s'], [59_999, '1m 0s'], [3_725_000, '1h 2m'], [0, '0 ms'], [3.64e-12, '0 ms'], [-1e-7, '0 ms'], [5e-7, '0.0005 µs'], [0.1234, '123 µs'],
  [0.9999, '1 ms'], [999.4, '999 ms'], [999.7, '1.00 s'], [59_940, '59.9 s'], [59_960, '1m 0s'], [3_599_400, '59m 59s'],
  [3_599_700, '1h 0m'], [86_399_999, '1d 0h'], [93_600_000, '1d 2h'], [12.34, '12.3 ms'], [1000, '1.00 s'], [-50, '−50 ms'],
])('%d ms is %s', (ms, text) => expect(duration(ms)).toBe(text))
test('an open span has no duration', () => expect(duration(null)).toBe('–'))

test.each([
  [0, '0'], [9999, '9,999'], [10_000, '10.0 K'], [12_345, '12.3 K'], [999_499, '999 K'], [999_950, '1.00 M'],
  [4_480_000, '4.48 M'], [18_400_000, '18.4 M'], [2.5e9, '2.50 B'], [3.2e12, '3,200 B'],
])('%d is %s', (n, text) => expect(count(n)).toBe(text))

test.each([[0.0228, '2.28 %'], [0.5, '50.0 %'], [1, '100 %'], [0, '0 %'], [12.5, '1,250 %'], [0.00001234, '0.00123 %']])(
  'the share %d is %s', (part, text) => expect(share(part)).toBe(text),
)
test('a score has three digits', () => expect(score(0.8144)).toBe('0.814'))

test.each([
  [42.31, 36.21, '▲ +$6.10 (+16.8 %)'], [15.5, 16.7, '▼ −$1.20 (−7.19 %)'], [2, 0, '▲ +$2.00 (new)'],
  [2, 2, 'unchanged'], [null, 2, 'no data'], [2, null, 'no data'],
])('the change to %s from %s is %s', (now, before, text) => {
  expect(change(now, before, (value) => money(Number(value.toFixed(6))))).toBe(text)
})

test('a quantile says by how much it may be off, if it may', () => {
  expect(quantileError(0.0055)).toBe('±0.550 %')
  expect(quantileError(0)).toBe('')
})

test.each([
  ['plain', 'plain'], ['a\u202eb', 'a\\u202eb'], ['\u0000\u001b[2J', '\\u0000\\u001b[2J'], ['\u2067x\u2069', '\\u2067x\\u2069'],
  ['👩‍💻 é ش', '👩‍💻 é ش'], ['\ud800x', '\\ud800x'], ['x\udc00', 'x\\udc00'], ['<img src=x onerror=alert(1)>', '<img src=x onerror=alert(1)>'],
  ['a\nb', 'a\\u000ab'],
])('nothing in %j is hidden', (text, shown) => expect(plain(text)).toBe(shown))
test('lines stay where lines are shown', () => expect(plain('a\n\tb\r', true)).toBe('a\n\tb\\u000d'))
test('a cut text says how much is left out', () => expect(cut('abcdef', 4)).toBe('abcd… 2 more characters'))

test('a value is written in its unit, and no data is never 0', () => {
  const vectors: [number | null, Unit, string][] = [
    [null, 'usd', 'no data'], [0, 'usd', '$0'], [0.0026, 'usd/call', '$0.0026'], [1240, 'milliseconds', '1.24 s'],
    [0.0228, 'share', '2.28 %'], [0.8141, 'score', '0.814'], [12345, 'tokens', '12.3 K'], [480.5, 'tokens', '480.5'],
    [7, 'spans', '7'], [null, 'count', 'no data'], [1234.56789, 'any', '1,235'], [-0.00001234, 'any', '−1.234e-5'], [0, 'any', '0'],
  ]
  for (const [value, unit, shown] of vectors) expect(amount(value, unit), `${value} ${unit}`).toBe(shown)
  expect(exactAmount(1.5, 'usd')).toBe('$1.500000000')
  expect(exactAmount(1234.5, 'milliseconds')).toBe('1,234.5 ms')
  expect(exactAmount(null, 'share')).toBe('no data')
  expect([noun('usd'), noun('usd/call'), noun('tokens')]).toEqual(['', ' a call', ' tokens'])
})

test.each([
  [0, '0 bytes'], [1023, '1,023 bytes'], [1024, '1.00 KiB'], [1535, '1.50 KiB'], [1023 * 1024, '0.999 MiB'], [5 * 2 ** 20, '5.00 MiB'],
  [8 * 2 ** 30, '8.00 GiB'], [123.4 * 2 ** 40, '123 TiB'], [2 ** 70, '1,048,576 PiB'], [null, '–'], [undefined, '–'],
])('%d bytes are %s', (size, text) => expect(bytes(size)).toBe(text))
