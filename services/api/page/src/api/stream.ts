// The live tail. It is read with fetch: an EventSource neither says why it failed nor waits longer each time.

export type Event = { name: string; data: string }

/** Splits the text of an event stream into events, whatever pieces it comes in. */
export class EventParser {
  private rest = ''

  /** The events that *text* completes; comments are left out. */
  push(text: string): Event[] {
    const blocks = (this.rest + text).split('\n\n')
    this.rest = blocks.pop() ?? ''
    const events = []
    for (const block of blocks) {
      const [names, data]: [string[], string[]] = [[], []]
      for (const line of block.split('\n')) {
        if (line.startsWith('event: ')) names.push(line.slice(7))
        else if (line.startsWith('data: ')) data.push(line.slice(6))
      }
      if (data.length) events.push({ name: names[0] ?? 'message', data: data.join('\n') })
    }
    return events
  }
}

const LONGEST_S = 30

/** Seconds until try number *tries*, which begins with 1: 1, 2, 4, … 30. */
export function pause(tries: number): number {
  return Math.min(2 ** (tries - 1), LONGEST_S)
}

/** Follows *path* until *signal* is aborted, and connects again after a break. */
export async function follow(path: string, signal: AbortSignal, heard: (event: Event) => void, state: (up: boolean) => void): Promise<void> {
  let tries = 0
  while (!signal.aborted) {
    try {
      const response = await fetch(path, { signal, credentials: 'same-origin', headers: { Accept: 'text/event-stream' } })
      // A refusal stays one: to ask again would not help.
      if (response.status >= 400 && response.status < 500) return
      if (response.ok && response.body) {
        tries = 0
        state(true)
        await read(response.body, heard)
      }
    } catch (error) {
      if (signal.aborted) return
      if (!(error instanceof TypeError)) throw error
    }
    state(false)
    tries += 1
    await new Promise((resolve) => setTimeout(resolve, pause(tries) * 1000))
  }
}

async function read(body: ReadableStream<Uint8Array>, heard: (event: Event) => void): Promise<void> {
  const [reader, decoder, parser] = [body.getReader(), new TextDecoder(), new EventParser()]
  for (;;) {
    const { done, value } = await reader.read()
    if (done) return
    for (const event of parser.push(decoder.decode(value, { stream: true }))) heard(event)
  }
}
