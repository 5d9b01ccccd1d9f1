// Requests to the API. Every address is relative to the page, so it works under any prefix.

export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
    /** The request, as it can be repeated elsewhere. */
    readonly request: string,
  ) {
    super(message)
  }
}

export type Options = {
  signal?: AbortSignal
  /** Told before each wait for a part that is not available: seconds, and the text of the 503. */
  waiting?: (seconds: number, why: string) => void
  /** Whether the body of an answer with an error status is an answer all the same. */
  accepted?: (body: unknown) => boolean
  /** Do not ask again after a 503. */
  once?: boolean
  fetch?: typeof fetch
  sleep?: (seconds: number, signal?: AbortSignal) => Promise<void>
}

const MOST_TRIES = 5

function sleeping(seconds: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000)
    signal?.addEventListener('abort', () => {
      clearTimeout(timer)
      reject(signal.reason)
    })
  })
}

/** The query string of parameters, in their order. */
export function query(params: Iterable<readonly [string, string]>): string {
  const text = new URLSearchParams([...params].map(([name, value]) => [name, value])).toString()
  return text && `?${text}`
}

/**
 * *id* as a name in a path. A browser removes the names `.` and `..`, even as `%2E`, so the API reads `%2E` in a name for
 * a full stop, if nothing else is in it; ids that look like that already are escaped once more.
 */
export function named(id: string): string {
  const isDots = /^(?:\.|%(?:25)*2E){1,2}$/.test(id)
  return encodeURIComponent(isDots ? id.replaceAll('%', '%25').replaceAll('.', '%2E') : id)
}

/** The body of an answer, decoded from JSON; null = it is none. */
async function jsonOf(response: Response): Promise<unknown> {
  const body = await response.text()
  try {
    return JSON.parse(body) as unknown
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error
    return null
  }
}

/** The text of an error answer: the API's own words, or the status if the answer is not the API's. */
async function textOf(response: Response): Promise<string> {
  const said = await jsonOf(response)
  if (said && typeof said === 'object' && 'error' in said && typeof said.error === 'string') return said.error
  return `${response.status} ${response.statusText}`.trim()
}

/**
 * The JSON of an answer. A 503 is asked again after its `Retry-After`, at most five times.
 *
 * @throws ApiError with status 0 if the server cannot be reached; the reason of *signal* if it is aborted.
 */
export async function getJson<T>(path: string, options: Options = {}): Promise<T> {
  const response = await send('GET', path, undefined, options)
  return (await response.json()) as T
}

export async function send(method: string, path: string, body?: unknown, options: Options = {}): Promise<Response> {
  const { signal, waiting, fetch: ask = fetch, sleep = sleeping } = options
  for (let tries = 1; ; tries++) {
    const response = await once(ask, method, path, body, signal)
    if (response.ok || (options.accepted && options.accepted(await jsonOf(response.clone())))) return response
    const text = await textOf(response)
    const wait = Number(response.headers.get('Retry-After'))
    if (response.status !== 503 || method !== 'GET' || options.once || tries > MOST_TRIES) throw new ApiError(response.status, text, `${method} ${path}`)
    const seconds = Number.isFinite(wait) && wait > 0 ? Math.min(wait, 60) : 1
    waiting?.(seconds, text)
    await sleep(seconds, signal)
  }
}

async function once(ask: typeof fetch, method: string, path: string, body: unknown, signal?: AbortSignal): Promise<Response> {
  const init: RequestInit = { method, credentials: 'same-origin', headers: { Accept: 'application/json' } }
  if (signal) init.signal = signal
  if (body !== undefined) {
    init.body = JSON.stringify(body)
    init.headers = { ...init.headers, 'Content-Type': 'application/json' }
  }
  try {
    return await ask(path, init)
  } catch (error) {
    if (signal?.aborted) throw error
    if (error instanceof TypeError) throw new ApiError(0, 'the server cannot be reached', `${method} ${path}`)
    throw error
  }
}

/** Runs one request at a time: a new one aborts the one before, whose answer is never used even if it comes. */
export class Newest {
  private current: AbortController | null = null

  /** True while a request runs. */
  get isRunning(): boolean {
    return this.current !== null
  }

  /** What *ask* returns; null = a newer request replaced this one, or `stop` was called. */
  async run<T>(ask: (signal: AbortSignal) => Promise<T>): Promise<T | null> {
    this.current?.abort()
    const own = new AbortController()
    this.current = own
    try {
      const answer = await ask(own.signal)
      return this.current === own ? answer : null
    } catch (error) {
      if (this.current !== own || own.signal.aborted) return null
      throw error
    } finally {
      if (this.current === own) this.current = null
    }
  }

  stop(): void {
    this.current?.abort()
    this.current = null
  }
}
