// The spans of a session as rows of a waterfall. Pure.

import type { GraphNode } from '../api/sessions'
import type { Row } from './tree'

/** The rows of a waterfall, in milliseconds since the first span; *costs* are the kinds whose cost counts. */
export function rowsOf(nodes: readonly GraphNode[], costs: ReadonlySet<string>): { rows: Row[]; started: number; whole: number } {
  const starts = nodes.map((node) => Date.parse(node.startedAt))
  const started = starts.reduce((least, at) => Math.min(least, at), Infinity)
  let whole = 0
  const rows = nodes.map((node, at): Row => {
    const start = starts[at]! - started
    whole = Math.max(whole, start + (node.duration ?? 0))
    const isOpen = node.duration === null
    return {
      trace_id: node.trace_id,
      span_id: node.id,
      parent_span_id: node.parentId ?? null,
      name: node.name,
      kind: node.type,
      start_ms: start,
      duration_ms: node.duration,
      status: node.status,
      model: node.model ?? null,
      cost_usd: node.costUSD,
      counted: !isOpen && node.counted !== false && costs.has(node.type),
      total_tokens: isOpen ? null : (node.tokens.total ?? node.tokens.input + node.tokens.output),
      ttft_ms: null,
      caller: null,
      score: null,
    }
  })
  return { rows, started: nodes.length ? started : 0, whole }
}
