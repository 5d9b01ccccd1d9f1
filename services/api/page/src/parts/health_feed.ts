// The health of the pipeline for all who show it: one request every ten seconds while the page is seen.

import { useEffect, useState } from 'preact/hooks'
import { ApiError } from '../api/client'
import { getHealth, type PipelineHealth } from '../api/health'
import { logIn } from './app'

const EVERY_MS = 10_000

export type HealthNow = { health: PipelineHealth | null; error: ApiError | null; path: string }

let now: HealthNow = { health: null, error: null, path: '' }
let timer: ReturnType<typeof setInterval> | null = null
let running: AbortController | null = null
let askedAt = 0
const hearers = new Set<(now: HealthNow) => void>()

/** Asks now, instead of at the next turn. */
export function askForHealth(): void {
  const { path } = now
  running?.abort()
  const own = new AbortController()
  running = own
  askedAt = Date.now()
  const tell = (next: Partial<HealthNow>) => {
    if (running !== own || now.path !== path) return
    running = null
    now = { ...now, ...next }
    for (const hear of hearers) hear(now)
  }
  getHealth(path, { signal: own.signal, once: true }).then(
    (health) => tell({ health, error: null }),
    (error: unknown) => {
      if (own.signal.aborted) return
      if (!(error instanceof ApiError)) throw error
      if (error.status === 401) logIn()
      tell({ error })
    },
  )
}

function turn(): void {
  if (!document.hidden && !running && Date.now() - askedAt >= EVERY_MS) askForHealth()
}

/** The newest health; *path* is that of the route. */
export function useHealth(path: string): HealthNow {
  const [shown, set] = useState(now)
  useEffect(() => {
    hearers.add(set)
    if (now.path !== path) now = { health: null, error: null, path }
    if (timer === null) {
      // Every second, so that a tab that is seen again after a while is told at once.
      timer = setInterval(turn, 1000)
      if (!document.hidden) askForHealth()
    }
    set(now)
    return () => {
      hearers.delete(set)
      if (hearers.size) return
      clearInterval(timer!)
      timer = null
      running?.abort()
      running = null
    }
  }, [path])
  return shown
}
