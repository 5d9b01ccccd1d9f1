// How the cost of a span was computed, line by line. Amounts of money are the API's own text: the lines add up exactly.

import { getJson } from '../api/client'
import type { Receipt } from '../api/types'
import { exactCount, plain } from '../core/format'
import { useAnswer } from './app'
import { Note, State } from './states'

export function ReceiptOf({ path, isOpen }: { path: string; isOpen: boolean }) {
  const answer = useAnswer(isOpen ? null : path, (options) => getJson<Receipt>(path, options).then((receipt) => ({ path, receipt })))
  if (isOpen) return <p>The span is open: it has no cost yet.</p>
  const isCurrent = answer.data?.path === path
  if (!answer.data || (!isCurrent && answer.error)) return <State answer={{ ...answer, data: null }} />
  const { receipt } = answer.data
  const { price } = receipt
  // A span that repeats what is below it, and costs nothing itself, has no receipt that could be mistaken for a price of $0.
  const isEmpty = !receipt.counted && !receipt.lines.length
  const facts: [string, string | null][] = [
    ['price', price.source],
    ['found as', price.matched_model],
    ['price tables', price.version],
    ['tier', price.tier === null ? null : `above ${exactCount(price.tier)} prompt tokens`],
    ['variant', price.variant],
    ['valid', price.period],
    ['as of', price.source === null ? null : price.priced_at],
    ['how it was found', price.matched],
    ['reason', receipt.reason],
    ['assumed', receipt.assumed],
  ]
  return (
    <div class={isCurrent ? undefined : 'stale'}>
      {!isEmpty && <table>
        <caption class="dim">{receipt.cost_usd === null ? 'The cost is not known' : `Cost ${dollars(receipt.cost_usd)}`}, {CONFIDENCE[receipt.confidence] ?? receipt.confidence}</caption>
        <thead><tr><th scope="col">unit</th><th scope="col" class="number">amount</th><th scope="col" class="number">rate</th><th scope="col" class="number">cost</th></tr></thead>
        <tbody>
          {receipt.lines.map((line, at) => (
            <tr key={at}>
              <td>{plain(line.unit).replaceAll('_', ' ')}</td>
              <td class="number">{typeof line.amount === 'number' ? exactCount(line.amount) : line.amount}</td>
              <td class="number">{line.rate_usd === null ? '' : `${dollars(line.rate_usd)}${line.per === null ? '' : ` / ${exactCount(line.per)}`}`}</td>
              <td class="number">{dollars(line.cost_usd)}</td>
            </tr>
          ))}
          {Number(receipt.rounding) !== 0 && <tr><td>rounding</td><td /><td /><td class="number">{dollars(receipt.rounding)}</td></tr>}
        </tbody>
        {receipt.cost_usd !== null && <tfoot><tr><th scope="row">sum</th><td /><td /><td class="number">{dollars(receipt.cost_usd)}</td></tr></tfoot>}
      </table>}
      {!receipt.counted && <Note text={isEmpty ? 'This span has no cost of its own: its calls have receipts.' : 'Sums leave this cost out: the calls below this span have it.'} />}
      {receipt.note && <p>{plain(receipt.note)}</p>}
      <dl>{facts.map(([name, value]) => value && [<dt key={name}>{name}</dt>, <dd key={`${name}=`}>{plain(value)}</dd>])}</dl>
    </div>
  )
}

/** What the API's words for the confidence of a cost mean. */
const CONFIDENCE: Record<string, string> = {
  exact: 'exact: computed from the price table',
  free: 'free: nothing is charged for it',
  reported: 'reported by the sender',
  overridden: 'overridden: a price of the configuration',
  partly_priced: 'partly priced: at least this much',
  unpriced: 'unpriced',
  reported_zero_ignored: 'the reported zero was ignored: computed from the price table',
}

/** An exact amount of money, as the receipt gives it. */
function dollars(amount: string): string {
  return amount.startsWith('-') ? `−$${amount.slice(1)}` : `$${amount}`
}
