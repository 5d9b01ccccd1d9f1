// The spans that were refused: how many for which reason, and each with what is wrong with it.

import { useState } from 'preact/hooks'
import { getJson } from '../api/client'
import { refusedPath, type Refused as RefusedRecord, type RefusedPage } from '../api/health'
import { bytes, count, cut, exactCount, plain } from '../core/format'
import { address, type Route } from '../core/route'
import { allAbout, shortInstant } from '../core/time'
import { go, useAnswer, useShared } from './app'
import { Curl, State } from './states'
import { scroller } from './scroller'

const OWN = ['reason', 'since', 'cursor']
/** Longest text of a record that is shown without being asked for, characters. */
const MOST_TEXT = 4000

export function Refused({ route }: { route: Route }) {
  const { params } = route
  const path = refusedPath(params)
  const answer = useAnswer(path, (options) => getJson<RefusedPage>(path, options), { refresh: !params.has('cursor') })
  const reason = params.get('reason')
  const show = (changes: { [name: string]: string | null }) => go(address('health', '', params.with({ cursor: null, ...changes })))
  return (
    <>
      {params.names().filter((name) => !OWN.includes(name)).map((name) => (
        <span class="chip wrong" key={name}>{plain(name)}: not understood
          <button type="button" aria-label={`remove ${plain(name)}`} onClick={() => go(address('health', '', params.without(name)))}>×</button></span>
      ))}
      {(answer.error || !answer.data) && <State answer={answer} />}
      {answer.data && (
        <div class={answer.loading ? 'stale' : ''}>
          <Reasons page={answer.data} reason={reason} show={(next) => show({ reason: next })} />
          {answer.data.count > 0 ? <List records={answer.data.rejected} />
            : answer.data.spans > 0 && <p>{reason || params.has('cursor') || params.has('since') ? 'No refused span that is still kept matches.' : 'Those that were refused are not kept any more.'}</p>}
          <div class="bar">
            {params.has('cursor') && <button type="button" onClick={() => show({})}>newest</button>}
            {answer.data.next_cursor && (
              <button type="button" onClick={() => go(address('health', '', params.with({ cursor: answer.data!.next_cursor })))}>older ›</button>
            )}
          </div>
        </div>
      )}
      <Curl path={path} />
    </>
  )
}

function Reasons({ page, reason, show }: { page: RefusedPage; reason: string | undefined; show: (reason: string | null) => void }) {
  const reasons = Object.entries(page.by_reason)
  const others = Object.entries(page.other_records ?? {})
  if (!page.spans && !others.length) return <p>No span was refused.</p>
  return (
    <>
      <p>
        {exactCount(page.spans)} {page.spans === 1 ? 'span was' : 'spans were'} refused in all.
        {others.length > 0 && ` Also refused: ${others.map(([kind, number]) => `${exactCount(number)} of ${kind}`).join(', ')}.`}
        {page.lost ? ` ${exactCount(page.lost)} more were discarded before they were counted.` : ''}{' '}
        <span class="dim">A request over HTTP that was answered with an error is not among them: its sender was told.</span>
      </p>
      {reasons.length > 0 && (
        <div class="health-reasons" role="group" aria-label="Reasons">
          <button type="button" aria-pressed={!reason} onClick={() => show(null)}>all {count(page.spans)}</button>
          {reasons.map(([name, number]) => (
            <button type="button" key={name} aria-pressed={reason === name} onClick={() => show(name)}>{plain(name)} {count(number)}</button>
          ))}
        </div>
      )}
    </>
  )
}

function List({ records }: { records: readonly RefusedRecord[] }) {
  const { zone } = useShared()
  const now = Date.now()
  return (
    <div class="scroll" ref={scroller}>
      <table>
        <thead><tr><th aria-sort="descending">refused</th><th>reason</th><th>what is wrong</th><th>reporter</th><th>record, without secrets</th></tr></thead>
        <tbody>
          {records.map((each) => {
            const at = Date.parse(each.at)
            return (
              <tr key={`${each.batch}/${each.kind}/${each.index}/${each.at}`}>
                <td class="time" title={allAbout(at, now, zone)}>{shortInstant(at, now, zone)}</td>
                <td>{plain(each.reason)}{each.kind !== 'span' && <span class="dim"> ({plain(each.kind)})</span>}</td>
                <td class="name">{plain(cut(each.error, 500))}</td>
                <td>{plain(each.reporter ?? '')}</td>
                <td class="name"><Shown record={each} /></td>
              </tr>
            )
          })}
        </tbody>
      </table>
    </div>
  )
}

function Shown({ record }: { record: RefusedRecord }) {
  const [all, setAll] = useState(false)
  const where = `batch ${record.batch}, number ${record.index}`
  if (!record.record) {
    const size = record.size_bytes === undefined ? '' : `, ${bytes(record.size_bytes)}`
    return <span class="dim">not shown{size}{record.sha256 && `, SHA-256 ${record.sha256.slice(0, 12)}…`}<br />{plain(where)}</span>
  }
  const text = JSON.stringify(record.record, null, 2)
  const name = record.record.name
  return (
    <details>
      <summary>{typeof name === 'string' && name ? plain(cut(name, 80)) : 'record'}</summary>
      <pre>{plain(all ? text : cut(text, MOST_TEXT), true)}</pre>
      {!all && text.length > MOST_TEXT && <button type="button" onClick={() => setAll(true)}>show</button>}
      <p class="dim">{plain(where)}</p>
    </details>
  )
}
