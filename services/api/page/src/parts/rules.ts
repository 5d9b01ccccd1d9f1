// The state of all rules, asked once for the header and the page together.

import { useEffect, useState } from 'preact/hooks'
import type { RuleState } from '../api/alerts'
import { ApiError, getJson, Newest } from '../api/client'
import { logIn, useShared } from './app'

/** Without the lists of instances, which can be long: the header asks on every page. */
export const RULES_PATH = './alerts?instances=0'
const EVERY_MS = 10_000

export type Rules = { data: RuleState[] | null; error: ApiError | null; waiting: string; loading: boolean }

let current: Rules = { data: null, error: null, waiting: '', loading: true }
const listeners = new Set<() => void>()
const newest = new Newest()

function tell(next: Rules): void {
  current = next
  for (const listener of listeners) listener()
}

/** Asks for the rules now. */
export function askRules(): void {
  const waiting = (seconds: number, why: string) => tell({ ...current, waiting: `${why}; asking again in ${seconds} s` })
  void newest.run((signal) => getJson<RuleState[]>(RULES_PATH, { signal, waiting })).then(
    (data) => data !== null && tell({ data, error: null, waiting: '', loading: false }),
    (error: unknown) => {
      if (!(error instanceof ApiError)) throw error
      if (error.status === 401) logIn()
      tell({ ...current, error, waiting: '', loading: false })
    },
  )
}

/** The rules as they were told last. */
export function useRules(): Rules {
  const [, set] = useState(0)
  useEffect(() => {
    const changed = () => set((before) => before + 1)
    listeners.add(changed)
    // What was told between the first picture and now.
    changed()
    return () => void listeners.delete(changed)
  }, [])
  return current
}

/** Asks for the rules now, and every ten seconds while the tab is seen and the page is live. */
export function useAskedRules(): Rules {
  const { live } = useShared()
  useEffect(() => {
    askRules()
    return () => newest.stop()
  }, [])
  useEffect(() => {
    if (!live) return
    let asked = Date.now()
    const timer = setInterval(() => {
      if (document.hidden || Date.now() - asked < EVERY_MS) return
      asked = Date.now()
      askRules()
    }, 1000)
    return () => clearInterval(timer)
  }, [live])
  return useRules()
}
