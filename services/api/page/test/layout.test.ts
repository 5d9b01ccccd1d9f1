import { expect, test } from 'vitest'
import { bar, between, layout, moved, rowsInView, scrolledTo, ticks, zoomed } from '../src/core/layout'

test('every row in view is rendered, and at most 16 more', () => {
  for (const rows of [0, 1, 5, 41, 10_000]) {
    for (const height of [0, 27, 28, 600, 601]) {
      for (const scrollTop of [-10, 0, 1, 27, 28, 29, 5000, rows * 28 - height, rows * 28 + 500]) {
        const { first, end } = rowsInView(scrollTop, height, 28, rows)
        for (let row = 0; row < Math.min(rows, 1000); row++) {
          const seen = row * 28 < scrollTop + height && (row + 1) * 28 > scrollTop
          if (seen) expect(row >= first && row < end, `${row} of ${rows} at ${scrollTop}`).toBe(true)
        }
        expect(end - first).toBeLessThanOrEqual(Math.ceil(height / 28) + 16)
        expect(first).toBeGreaterThanOrEqual(0)
        expect(end).toBeLessThanOrEqual(rows)
      }
    }
  }
})

test('a row is scrolled to no further than needed', () => {
  expect(scrolledTo(0, 280, 100, 28)).toBe(0)
  expect(scrolledTo(11, 280, 100, 28)).toBe(280)
  expect(scrolledTo(20, 280, 100, 28)).toBe(21 * 28 - 100)
})

test.each([
  [0, 50, { left: 0, width: 0.5 }], [25, 50, { left: 0.25, width: 0.5 }], [-50, 100, { left: 0, width: 0.5 }],
  [50, 500, { left: 0.5, width: 0.5 }], [200, 5, null], [-20, 10, null], [50, 0, { left: 0.5, width: 0 }],
])('the bar from %d, %d ms long', (start, length, drawn) => expect(bar(start, length, layout({ from: 0, to: 100 }, [], 5))).toEqual(drawn))
test('a trace without any duration fills the axis', () => expect(bar(0, 0, layout({ from: 0, to: 0 }, [], 5))).toEqual({ left: 0, width: 1 }))

test.each([
  [{ from: 0, to: 1000 }, 5, [0, 200, 400, 600, 800, 1000]], [{ from: 0, to: 1.2e6 }, 4, [0, 3e5, 6e5, 9e5, 1.2e6]],
  [{ from: 130, to: 270 }, 3, [150, 200, 250]], [{ from: 0, to: 0 }, 5, []],
])('the ticks of %o', (view, most, found) => expect(ticks(view, most)).toEqual(found))
test('there are never too many ticks, nor none', () => {
  for (let exponent = -3; exponent < 12; exponent++) {
    for (const most of [2, 5, 8]) {
      const found = ticks({ from: 3.7, to: 3.7 + 10 ** exponent }, most)
      expect(found.length).toBeLessThanOrEqual(most + 1)
    }
  }
})

test('zooming keeps the point under the pointer and stays within the trace', () => {
  const whole = { from: 0, to: 1000 }
  expect(zoomed(whole, 0.5, 250, whole)).toEqual({ from: 125, to: 625 })
  expect(zoomed({ from: 125, to: 625 }, 4, 250, whole)).toEqual(whole)
  expect(zoomed({ from: 0, to: 100 }, 2, 0, whole)).toEqual({ from: 0, to: 200 })
})

test('compressed stretches are small, the rest is in proportion, and each point of the axis leads back to its time', () => {
  const axis = layout({ from: 0, to: 1000 }, [{ from: 100, to: 500 }, { from: 600, to: 990 }], 5)
  expect(axis.gaps.length).toBe(2)
  expect(axis.place(0)).toBe(0)
  expect(axis.place(1000)).toBeCloseTo(1, 12)
  expect(axis.place(500) - axis.place(100)).toBeCloseTo(0.02, 12)
  expect((axis.place(100) - axis.place(0)) / (axis.place(600) - axis.place(500))).toBeCloseTo(1, 9)
  for (let ms = 0; ms <= 1000; ms += 7) expect(axis.at(axis.place(ms))).toBeCloseTo(ms, 6)
  for (let ms = 0; ms < 1000; ms += 7) expect(axis.place(ms + 7)).toBeGreaterThan(axis.place(ms))
  expect(axis.ticks.every((tick) => !axis.gaps.some((gap) => tick > gap.from && tick < gap.to))).toBe(true)
})

test('a stretch that is as long as the view, or too short to gain anything, is not compressed', () => {
  expect(layout({ from: 0, to: 100 }, [{ from: 0, to: 100 }], 5).gaps).toEqual([])
  expect(layout({ from: 0, to: 1000 }, [{ from: 10, to: 20 }], 5).gaps).toEqual([])
  const many = Array.from({ length: 40 }, (_, index) => ({ from: index * 25 + 1, to: index * 25 + 24 }))
  const axis = layout({ from: 0, to: 1000 }, many, 5)
  expect(axis.place(1000)).toBeCloseTo(1, 9)
})

test('dragging over the axis is a view in either direction, and moving it stays within the trace', () => {
  const whole = { from: 0, to: 1000 }
  const axis = layout({ from: 200, to: 600 }, [], 5)
  expect(between(axis, 0.75, 0.25, whole)).toEqual({ from: 300, to: 500 })
  expect(between(axis, -1, 2, whole)).toEqual({ from: 200, to: 600 })
  expect(between(axis, 0.5, 0.5, whole).to).toBeGreaterThan(between(axis, 0.5, 0.5, whole).from)
  expect(moved({ from: 100, to: 300 }, -1, whole)).toEqual({ from: 0, to: 200 })
  expect(moved({ from: 100, to: 300 }, 0.5, whole)).toEqual({ from: 200, to: 400 })
  expect(moved({ from: 700, to: 900 }, 3, whole)).toEqual({ from: 800, to: 1000 })
})
