// A part of a page that comes from one request: its heading, its state, what the answer lacks, and the request itself.

import type { ComponentChildren } from 'preact'
import { getJson, query } from '../api/client'
import type { Coverage } from '../api/metrics'
import type { Pair } from '../core/params'
import { duration, plain } from '../core/format'
import { instant } from '../core/time'
import { useAnswer, useShared, type Answer } from './app'
import { Curl, Note, State } from './states'
import './panel.css'

export type Asked<T> = { answer: Answer<T>; path: string }

/** The answer of `GET path?params`, asked anew while the page is live; null = ask nothing. */
export function useAsked<T>(path: string, params: readonly Pair[] | null): Asked<T> {
  // The configuration can have the numbers at another path.
  const metrics = useShared().about?.paths.metrics ?? '/metrics'
  const shown = `.${path.replace(/^\/metrics(?=\/|$)/, metrics)}${query(params ?? [])}`
  const answer = useAnswer<T>(params === null ? null : shown, (options) => getJson<T>(shown, options), { refresh: true })
  return { answer, path: shown }
}

/** The same with other data, for an answer that has to be brought into another form. */
export function mapped<T, R>({ answer, path }: Asked<T>, change: (data: T) => R): Asked<R> {
  return { answer: { ...answer, data: answer.data === null ? null : change(answer.data) }, path }
}

/** What an answer lacks, in words; [] = nothing. */
export function lacks(answer: Partial<Coverage>, zone: string): string[] {
  const told = []
  if (answer.incomplete) told.push(`Incomplete: no answer came from shard ${(answer.missing_shards ?? []).join(', ')}.`)
  if (answer.since && answer.from && answer.since > answer.from) {
    told.push(`Spans before ${instant(Date.parse(answer.since), zone).slice(0, 19)} may be missing.`)
  }
  if (answer.behind_s) told.push(`The numbers are ${duration(answer.behind_s * 1e3)} behind.`)
  return told
}

/** A panel; *children* draws the data, which stays dimmed while a new answer loads. *asked* may be several requests. */
export function Panel<T>({ title, asked, also = [], actions, children }: {
  title: ComponentChildren; asked: Asked<T>; also?: readonly Asked<unknown>[]; actions?: ComponentChildren; children: (data: T) => ComponentChildren
}) {
  const { zone } = useShared()
  const { data } = asked.answer
  const failed = also.filter((other) => other.answer.error)
  return (
    <section class="panel">
      <div class="panel-head"><h2>{title}</h2>{actions}</div>
      <State answer={asked.answer} />
      {failed.map((other) => <State key={other.path} answer={other.answer} />)}
      {data && <div class={asked.answer.loading ? 'stale' : ''}>
        {lacks(data as Partial<Coverage>, zone).map((text) => <Note key={text} text={plain(text)} />)}
        {children(data)}
      </div>}
      <Curl path={asked.path} />
      {also.map((other) => <Curl key={other.path} path={other.path} />)}
    </section>
  )
}
