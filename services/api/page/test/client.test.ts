import { expect, test } from 'vitest'
import { ApiError, getJson, named, Newest, query, send } from '../src/api/client'
import { EventParser, pause } from '../src/api/stream'

function answering(...answers: (Response | Error)[]) {
  const asked: string[] = []
  const fetch = async (path: RequestInfo | URL) => {
    asked.push(String(path))
    const answer = answers.length > 1 ? answers.shift()! : answers[0]!
    if (answer instanceof Error) throw answer
    return answer.clone()
  }
  return { asked, fetch: fetch as typeof globalThis.fetch }
}
const json = (body: unknown, status = 200, headers = {}) => new Response(JSON.stringify(body), { status, headers })

test('an error is told in the words of the API', async () => {
  for (const [answer, status, text] of [
    [json({ error: 'limit: unknown parameter' }, 400), 400, 'limit: unknown parameter'],
    [json({ error: 'missing or wrong bearer token' }, 401), 401, 'missing or wrong bearer token'],
    [new Response('<h1>Bad gateway</h1>', { status: 502, statusText: 'Bad Gateway' }), 502, '502 Bad Gateway'],
    [new TypeError('fetch failed'), 0, 'the server cannot be reached'],
  ] as const) {
    const error = await getJson('./traces', answering(answer)).catch((thrown: unknown) => thrown)
    expect(error).toBeInstanceOf(ApiError)
    expect(error).toMatchObject({ status, message: text, request: 'GET ./traces' })
  }
})

test('a 503 is asked again after Retry-After, at most five times', async () => {
  const waits: number[] = []
  const sleep = async (seconds: number) => void waits.push(seconds)
  const busy = json({ error: 'span store: is not open yet' }, 503, { 'Retry-After': '3' })
  const told: string[] = []
  const options = { sleep, waiting: (_: number, why: string) => told.push(why) }
  expect(await getJson('./x', { ...answering(busy, busy, json({ a: 1 })), ...options })).toEqual({ a: 1 })
  expect(waits).toEqual([3, 3])
  expect(told[0]).toBe('span store: is not open yet')
  const always = answering(busy)
  await expect(getJson('./x', { ...always, ...options })).rejects.toMatchObject({ status: 503 })
  expect(always.asked.length).toBe(6)
})

test('only what changes nothing is asked again', async () => {
  const busy = answering(json({ error: 'away' }, 503, { 'Retry-After': '1' }))
  await expect(send('POST', './session', {}, busy)).rejects.toMatchObject({ status: 503 })
  expect(busy.asked.length).toBe(1)
})

test('an older answer never replaces a newer one, even if it comes later', async () => {
  const newest = new Newest()
  let answerFirst: (value: string) => void = () => undefined
  let aborted = false
  const first = newest.run((signal) => {
    signal.addEventListener('abort', () => (aborted = true))
    return new Promise<string>((resolve) => (answerFirst = resolve))
  })
  const second = newest.run(async () => 'second')
  answerFirst('first')
  expect(await Promise.all([first, second])).toEqual([null, 'second'])
  expect(aborted).toBe(true)
})

test('it runs until the newest request ends, whatever becomes of the others', async () => {
  const newest = new Newest()
  let answer: () => void = () => undefined
  void newest.run((signal) => new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason))))
  const second = newest.run(() => new Promise<void>((resolve) => (answer = resolve)))
  await new Promise((resolve) => setTimeout(resolve))
  expect(newest.isRunning).toBe(true)
  answer()
  await second
  expect(newest.isRunning).toBe(false)
  await newest.run(async () => Promise.reject(new ApiError(400, 'x', 'GET x'))).catch(() => undefined)
  expect(newest.isRunning).toBe(false)
})

test('an error of a request that was replaced is not shown, that of the newest is', async () => {
  const newest = new Newest()
  const first = newest.run((signal) => new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason))))
  expect([await newest.run(async () => 1), await first]).toEqual([1, null])
  await expect(newest.run(async () => Promise.reject(new ApiError(400, 'x', 'GET x')))).rejects.toThrow('x')
})

test('parameters are escaped', () => {
  expect(query([['attr.a b', 'x&y=z']])).toBe('?attr.a+b=x%26y%3Dz')
  expect(query([])).toBe('')
})

test('events are the same whatever pieces they come in', () => {
  const text = ': following\n\nevent: span\ndata: {"a":\ndata: 1}\n\n: nothing new\n\nevent: dropped\ndata: {}\n\ndata: x\n\n'
  const expected = [{ name: 'span', data: '{"a":\n1}' }, { name: 'dropped', data: '{}' }, { name: 'message', data: 'x' }]
  for (let size = 1; size <= text.length; size++) {
    const parser = new EventParser()
    const found = []
    for (let at = 0; at < text.length; at += size) found.push(...parser.push(text.slice(at, at + size)))
    expect(found).toEqual(expected)
  }
})

test('the pauses of a broken tail grow to half a minute', () => {
  expect([1, 2, 3, 6, 50].map(pause)).toEqual([1, 2, 4, 30, 30])
})

test('an error that is an answer all the same is one, and a 503 is told at once if it is asked for once', async () => {
  const health = { status: 'unhealthy', parts: [], error: 'no ingest answers' }
  const parts = (body: unknown) => body !== null && typeof body === 'object' && 'parts' in body
  expect(await getJson('./health', { ...answering(json(health, 503, { 'Retry-After': '1' })), accepted: parts })).toEqual(health)
  const other = answering(json({ error: 'not ready' }, 503, { 'Retry-After': '1' }))
  const error = await getJson('./health', { ...other, accepted: parts, once: true }).catch((thrown: unknown) => thrown)
  expect(error).toMatchObject({ status: 503, message: 'not ready' })
  expect(other.asked).toEqual(['./health'])
  const page = answering(new Response('<h1>Bad gateway</h1>', { status: 502, statusText: 'Bad Gateway' }))
  expect(await getJson('./health', { ...page, accepted: parts }).catch((thrown: unknown) => thrown)).toMatchObject({ message: '502 Bad Gateway' })
})

test.each([
  ['.', '%252E'], ['..', '%252E%252E'], ['%2E', '%25252E'], ['.%252E', '%252E%2525252E'], ['%2e', '%252e'], ['...', '...'], ['a/b', 'a%2Fb'], ['50%', '50%25'],
])('the id %j stands as a name in a path that a browser leaves alone', (id, name) => {
  expect(named(id)).toBe(name)
  expect(new URL(`./traces/${named(id)}/timeline`, 'http://host/').pathname).toBe(`/traces/${name}/timeline`)
})
