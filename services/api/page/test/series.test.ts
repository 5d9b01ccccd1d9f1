import { expect, test } from 'vitest'
import { bounds, clusters, frameOf, highest, HUES, hue, hues, lowest, segments, snapped, stackOf, withGaps, withPartial } from '../src/core/series'

test('the first and the last bucket are partial unless they lie within the range', () => {
  const points = [0, 60, 120].map((at) => ({ at, value: 1 }))
  expect(withPartial(points, 60, 10, 150).map((point) => point.partial)).toEqual([true, false, true])
  expect(withPartial(points, 60, 0, 180).map((point) => point.partial)).toEqual([false, false, false])
})

test('a missing bucket has no value, so no line crosses it', () => {
  expect(withGaps([{ at: 0, value: 1 }, { at: 180, value: 2 }], 60).map((point) => point.value)).toEqual([1, null, null, 2])
  expect(withGaps([], 60)).toEqual([])
})

test('a name has one of twelve hues, always the same', () => {
  expect(hue('gpt-4o')).toBe(hue('gpt-4o'))
  expect(new Set(Array.from({ length: 500 }, (_, index) => hue(`model-${index}`))).size).toBe(HUES)
})

const at = (ms: number, value: number | null, partial = false) => ({ at: ms, value, partial })
const line = (name: string, ...points: ReturnType<typeof at>[]) => ({ name, points })

test('lines share their steps, and a step that is missing has no value in any of them', () => {
  const frame = frameOf([line('a', at(50, 1, true), at(60, 2), at(240, 3, true)), line('b', Object.assign(at(60, 5), { note: '+ 3 unpriced' }))], 60, 250)
  expect(frame.starts).toEqual([50, 60, 120, 180, 240])
  expect(frame.ends).toEqual([60, 120, 180, 240, 250])
  expect(frame.partial).toEqual([true, false, false, false, true])
  expect(frame.values).toEqual([[1, 2, null, null, 3], [null, 5, null, null, null]])
  expect(frame.notes[1]![1]).toBe('+ 3 unpriced')
  expect(frameOf([], 60, 100)).toEqual({ starts: [], ends: [], partial: [], names: [], values: [], notes: [] })
})

test('layers of a stack lie on each other, and what is hidden or without data has none', () => {
  const frame = frameOf([line('a', at(0, 1), at(60, null)), line('b', at(0, 2), at(60, 4)), line('c', at(0, 3), at(60, 0))], 60, 120)
  expect(stackOf(frame, new Set())).toEqual([[[0, 1], null], [[1, 3], [0, 4]], [[3, 6], null]])
  expect(stackOf(frame, new Set(['b']))).toEqual([[[0, 1], null], [null, null], [[1, 4], null]])
  expect(highest(frame, new Set(), true)).toEqual({ value: 6, at: 0 })
  expect(highest(frame, new Set(), false)).toEqual({ value: 4, at: 1 })
  expect(highest(frame, new Set(['a', 'b', 'c']), false)).toBe(null)
  expect(lowest(frame, new Set(['c']))).toBe(1)
})

test('a line is dashed beside a partial step, broken where data is missing, and a dot where a step stands alone', () => {
  expect(segments([1, 2, 3, null, 5, null, 7, 8], [true, false, false, false, false, false, false, true])).toEqual({
    pieces: [{ from: 0, to: 1, dashed: true }, { from: 1, to: 2, dashed: false }, { from: 6, to: 7, dashed: true }],
    alone: [4],
  })
})

test('an axis begins at 0 unless it is free, and a limit far above the values does not stretch it', () => {
  expect(bounds(5, 10, [], false)).toEqual([0, 10.8])
  expect(bounds(5, 10, [20, 1000], false)).toEqual([0, 21.6])
  expect(bounds(-10, 10, [], false)[0]).toBeLessThan(-10)
  const [low, high] = bounds(0.8, 0.9, [0.7], true)
  expect([low < 0.7, low > 0.6, high > 0.9]).toEqual([true, true, true])
  expect(bounds(0, 0, [], false)).toEqual([0, 0.08])
  expect(bounds(null, null, [3], false)).toEqual([0, 1])
})

test('a selection covers whole steps, at least one', () => {
  const frame = frameOf([line('a', at(50, 1), at(60, 2), at(120, 3), at(180, 1))], 60, 200)
  expect(snapped(frame, 64, 175)).toEqual({ from: 60, to: 180 })
  expect(snapped(frame, 175, 64)).toEqual({ from: 60, to: 180 })
  expect(snapped(frame, 125, 130)).toEqual({ from: 120, to: 180 })
  expect(snapped(frame, 0, 999)).toEqual({ from: 50, to: 200 })
  expect(snapped(frameOf([], 60, 100), 1, 2)).toBe(null)
})

test('names with one hue are told apart, and flags that are close together are one', () => {
  const names = Array.from({ length: 13 }, (_, index) => `model-${index}`)
  const found = hues(names)
  expect(found.map((each) => each.hue)).toEqual(names.map(hue))
  expect(found.filter((each) => !each.again).length).toBe(new Set(names.map(hue)).size)
  expect(clusters([0, 10, 23, 24, 60], 24)).toEqual([[0, 1, 2], [3], [4]])
})
