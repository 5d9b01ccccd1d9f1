// What the live tail tells of traces that a list does not show yet.

import { useEffect, useRef, useState } from 'preact/hooks'
import { query } from '../api/client'
import { follow } from '../api/stream'
import type { Pair } from '../core/params'

/** Seconds over which the rate of spans is counted. */
const RATE_S = 10

export type News = {
  /** Ids of traces that are not listed. */
  ids: ReadonlySet<string>
  /** Spans a second; null = nothing is followed. */
  rate: number | null
  dropped: number
  isUp: boolean
  forget: () => void
}

/** Follows the spans that match *filters*; traces in *listed* are no news. */
export function useNews(on: boolean, filters: readonly Pair[], listed: ReadonlySet<string>): News {
  const [ids, setIds] = useState<ReadonlySet<string>>(new Set())
  const [dropped, setDropped] = useState(0)
  const [rate, setRate] = useState<number | null>(null)
  const [isUp, setUp] = useState(true)
  const known = useRef(listed)
  known.current = listed
  const path = `./traces/tail${query(filters)}`
  useEffect(() => {
    setIds(new Set())
    setDropped(0)
    setRate(null)
    setUp(true)
    if (!on) return
    const control = new AbortController()
    let told: number[] = []
    void follow(path, control.signal, (event) => {
      const said = JSON.parse(event.data) as { trace_id?: string; dropped?: number }
      if (event.name === 'dropped') return setDropped(said.dropped ?? 0)
      if (!said.trace_id) return
      told.push(Date.now())
      const id = said.trace_id
      if (!known.current.has(id)) setIds((before) => (before.has(id) ? before : new Set([...before, id])))
    }, setUp)
    const timer = setInterval(() => {
      told = told.filter((at) => at > Date.now() - RATE_S * 1e3)
      setRate(told.length / RATE_S)
    }, 1000)
    return () => {
      control.abort()
      clearInterval(timer)
    }
  }, [on, path])
  const forget = () => setIds(new Set())
  return { ids: new Set([...ids].filter((id) => !listed.has(id))), rate, dropped, isUp, forget }
}
