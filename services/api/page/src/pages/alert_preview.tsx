// What a rule would have done: the value over time with its threshold, and the events.

import { useEffect, useRef, useState } from 'preact/hooks'
import type { AlertEvent, Preview as Answer, RuleSeries, Written } from '../api/alerts'
import { send } from '../api/client'
import { SYMBOLS, valueOf } from '../core/alerts'
import { count, plain, type Unit } from '../core/format'
import { instant, parseWindow } from '../core/time'
import { useShared } from '../parts/app'
import { Chart, type Mark, type Threshold } from '../parts/chart'
import { Curl } from '../parts/states'
import { messageOf, When } from './alert_row'

const WINDOWS = ['1h', '6h', '24h', '7d']
/** Nothing is asked before the form has rested for so long, milliseconds: each preview reads the log. */
const REST_MS = 700
const MOST_EVENTS = 20
/** After so many milliseconds without an answer the page says why. */
const SLOW_MS = 15_000

/** *rule* is null while it lacks what a preview needs; *failed* is told what the API refuses, "" = nothing. */
export function Preview({ rule, unit, failed }: { rule: Written | null; unit: Unit; failed: (text: string) => void }) {
  const [window, setWindow] = useState('24h')
  const { answer, problem, isAsking, again } = usePreview(rule, window, failed)
  return (
    <section class="alerts-preview" aria-labelledby="alerts-preview" aria-busy={isAsking}>
      <div class="bar">
        <h2 id="alerts-preview">Preview</h2>
        <label for="preview-window">of the last</label>
        <select id="preview-window" value={window} onChange={(event) => setWindow(event.currentTarget.value)}>
          {WINDOWS.map((each) => <option key={each}>{each}</option>)}
        </select>
        <button type="button" disabled={!rule} onClick={again}>again</button>
        {isAsking && <span class="dim">reading the log…</span>}
      </div>
      {!rule && <p class="dim">Choose a metric and a threshold; then this shows when the rule would have fired.</p>}
      <SlowReplay isAsking={isAsking} />
      {problem && <p class="note">{plain(problem)}</p>}
      {answer && !problem && (
        <div class={isAsking ? 'stale' : ''}>
          <p class="alerts-would" role="status">
            It would have fired <strong>{count(answer.firings)} {answer.firings === 1 ? 'time' : 'times'}</strong> {logBegins(answer) ? <>since <When at={answer.found.from} />, when the log begins</> : `in the last ${answer.window}`}
            {answer.resolutions > 0 && `, and been resolved ${count(answer.resolutions)} ${answer.resolutions === 1 ? 'time' : 'times'}`}.
          </p>
          <SeriesChart series={answer.found} unit={unit} change={answer.change} title={`what ${plain(answer.found.metric)} would have been`}
            marks={answer.found.events.map((event) => markOf(event, unit, answer.change))} />
          <Events events={answer.found.events} unit={unit} change={answer.change} all={answer.firings + answer.resolutions} />
        </div>
      )}
      {rule && <Curl path={`./alerts/preview?window=${window}`} body={rule} />}
    </section>
  )
}

/** Why a replay has not answered yet, once it takes long. */
export function SlowReplay({ isAsking }: { isAsking: boolean }) {
  const [isSlow, setSlow] = useState(false)
  useEffect(() => {
    if (!isAsking) return setSlow(false)
    const timer = setTimeout(() => setSlow(true), SLOW_MS)
    return () => clearTimeout(timer)
  }, [isAsking])
  return (
    <div role="status">
      {isSlow && <p class="note">Still no answer: rules are replayed one at a time, so this one may have waited for another, and the log of this time is long. After 15 s of reading it shows what it has found by then. A shorter time is read sooner.</p>}
    </div>
  )
}

/** True if the log does not reach back as far as was asked. */
function logBegins({ found, window }: Found): boolean {
  return Date.parse(found.from) > Date.parse(found.to) - (parseWindow(window) ?? 0) + 1000
}

type Found = { found: Answer; firings: number; resolutions: number; window: string; change: string | null }

/** The preview of *rule*, asked one at a time: while one is made, only the newest of the others waits. */
function usePreview(rule: Written | null, window: string, failed: (text: string) => void) {
  const [answer, setAnswer] = useState<Found | null>(null)
  const [problem, setProblem] = useState('')
  const [isAsking, setAsking] = useState(false)
  const state = useRef({ running: false, next: null as (() => Promise<void>) | null, gone: false })
  const run = async (ask: () => Promise<void>) => {
    const own = state.current
    own.next = ask
    if (own.running) return
    own.running = true
    setAsking(true)
    while (own.next && !own.gone) {
      const current = own.next
      own.next = null
      await current()
    }
    own.running = false
    if (!own.gone) setAsking(false)
  }
  const ask = async () => {
    if (!rule) return
    try {
      const response = await send('POST', `./alerts/preview?window=${window}`, rule)
      const found = (await response.json()) as Answer
      if (state.current.gone) return
      setAnswer({ found, firings: found.firings, resolutions: found.resolutions, window, change: (rule.change as string | undefined) ?? null })
      setProblem('')
      failed('')
    } catch (error) {
      const text = messageOf(error)
      if (state.current.gone) return
      // An error that names a field stands beside it.
      setProblem(text.startsWith('rule') ? '' : text)
      failed(text.startsWith('rule') ? text : '')
    }
  }
  const latest = useRef(ask)
  latest.current = ask
  const key = rule && JSON.stringify([rule, window])
  useEffect(() => {
    if (!key) return
    const timer = setTimeout(() => void run(() => latest.current()), REST_MS)
    return () => clearTimeout(timer)
  }, [key])
  useEffect(() => () => {
    state.current.gone = true
  }, [])
  return { answer, problem, isAsking, again: () => void run(() => latest.current()) }
}

/** The value of a rule over time. Points stand at the beginning of their step; the chart needs that. */
export function SeriesChart({ series, unit, change, title, marks, lasts = '', onBrush }: {
  series: RuleSeries; unit: Unit; change: string | null; title: string; marks: readonly Mark[]; lasts?: string; onBrush?: (from: number, to: number) => void
}) {
  const { zone } = useShared()
  const step = series.step_s * 1e3
  const isPercent = change === 'percent'
  const scaled = (value: number | null) => (value !== null && isPercent ? value / 100 : value)
  const shownUnit: Unit = isPercent ? 'share' : unit
  const points = series.points.map((point) => ({
    at: Math.floor(Date.parse(point.at) / step) * step, value: scaled(point.value), partial: false,
    note: point.instances > 1 ? `(${count(point.breached)} of ${count(point.instances)} over)` : undefined,
  }))
  const thresholds: Threshold[] = [
    { value: scaled(series.threshold)!, name: `fires ${SYMBOLS[series.op]} ${valueOf(series.threshold, { change }, unit)}${lasts && ` for ${lasts}`}` },
  ]
  if (series.recovery_threshold !== null) {
    thresholds.push({ value: scaled(series.recovery_threshold)!, name: `resolves at ${valueOf(series.recovery_threshold, { change }, unit)}` })
  }
  const [from, to, until] = [Date.parse(series.from), Date.parse(series.to), Date.parse(series.until)]
  return (
    <>
      <Chart title={title} unit={shownUnit} series={[{ name: plain(series.metric), points: points.map(({ note, ...point }) => (note ? { ...point, note } : point)) }]}
        step={step} range={{ from, to }} thresholds={thresholds} marks={marks} {...(onBrush ? { onBrush } : {})} />
      {!series.complete && <p class="note">Reading the log took too long: this reaches to {instant(until, zone)} only. Choose a shorter time.</p>}
    </>
  )
}

export function markOf(event: AlertEvent, unit: Unit, change: string | null, told = ''): Mark {
  const group = Object.values(event.group)[0]
  const what = event.status === 'firing' ? `fired at ${valueOf(event.value, { change }, unit)}` : 'resolved'
  return { at: Date.parse(event.fired_at), name: `${what}${group === undefined ? '' : ` for ${plain(group)}`}${told && `, ${told}`}` }
}

function Events({ events, unit, change, all }: { events: readonly AlertEvent[]; unit: Unit; change: string | null; all: number }) {
  if (!events.length) return null
  const listed = events.slice(0, MOST_EVENTS)
  return (
    <>
      <ol class="alerts-events">
        {listed.map((event) => (
          <li key={`${event.fired_at}/${event.status}/${Object.values(event.group).join()}`}>
            <When at={event.fired_at} /> {markOf(event, unit, change).name}
          </li>
        ))}
      </ol>
      {all > listed.length && <p class="dim">and {count(all - listed.length)} more</p>}
    </>
  )
}
