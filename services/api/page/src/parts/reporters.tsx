// Who sends spans, and what each of them could not deliver.

import { useState } from 'preact/hooks'
import { getJson } from '../api/client'
import type { Reporter, Reporters } from '../api/health'
import { count, exactCount, NONE, plain } from '../core/format'
import { address } from '../core/route'
import { ago, allAbout, instant } from '../core/time'
import { useAnswer, useShared } from './app'
import { Curl, State } from './states'
import { scroller } from './scroller'

const SHOWN_FIRST = 20
const lost = (reporter: Reporter) => reporter.failed + reporter.dropped > 0 || !!reporter.rejected

export function ReporterList() {
  const { zone } = useShared()
  const [all, setAll] = useState(false)
  const answer = useAnswer('reporters', (options) => getJson<Reporters>('./reporters', options), { refresh: true })
  if (!answer.data) return <State answer={answer} />
  const { reporters, since } = answer.data
  const now = Date.now()
  // Those who lost something are first; otherwise the one that sent last, as the answer has them.
  const sorted = [...reporters.filter(lost), ...reporters.filter((each) => !lost(each))]
  const shown = all ? sorted : sorted.slice(0, SHOWN_FIRST)
  return (
    <>
      {answer.error && <State answer={answer} />}
      {!reporters.length ? <p>No reporter has sent a span since this api started; spans that are posted over HTTP come without a reporter.</p> : (
        <div class="scroll" ref={scroller}>
          <table>
            <thead>
              <tr><th>reporter</th><th>last seen</th><th class="number">processes</th><th class="number">sent</th><th class="number">accepted</th>
                <th class="number">waiting</th><th class="number">dropped</th><th class="number">failed</th><th class="number">refused</th></tr>
            </thead>
            <tbody>
              {shown.map((each) => {
                const seen = Date.parse(each.last_seen)
                return (
                  <tr key={`${each.project}/${each.source}`} class={lost(each) ? 'wrong' : ''}>
                    <td class="name">{lost(each) && <span class="level-warning" aria-hidden="true">▲ </span>}
                      <a href={address('traces', '', [['caller', each.source]])}>{plain(each.source) || '(no name)'}</a>
                      {each.project !== 'default' && <span class="dim"> of {plain(each.project)}</span>}</td>
                    <td class="time" title={allAbout(seen, now, zone)}>{ago(seen, now)}</td>
                    {[each.processes, each.sent, each.acked, each.queue_depth, each.dropped, each.failed, each.rejected].map((value, at) => (
                      <td key={at} class={at >= 4 && value ? 'number health-bad' : 'number dim'} title={exactCount(value)}>{value === undefined ? NONE : count(value)}</td>
                    ))}
                  </tr>
                )
              })}
            </tbody>
          </table>
        </div>
      )}
      {sorted.length > shown.length && <button type="button" onClick={() => setAll(true)}>show all {exactCount(sorted.length)}</button>}
      <p class="dim">
        Counted since each process started, as its last batch told, for reporters that have sent since {instant(Date.parse(since), zone)}. Dropped: its queue was
        full. Failed: the pipeline refused the batch for good. Refused: single spans, listed below.
      </p>
      <Curl path="./reporters" />
    </>
  )
}
