// The answers about sessions, in the form of Cost Katana's clients: `traceId` of a message is the id of a span.

import type { Params } from '../core/params'
import { getJson, named, query, type Options } from './client'

export type TokenSums = { input: number; output: number; total?: number }
export type Session = {
  sessionId: string
  status: 'active' | 'completed' | 'error'
  totalSpans: number
  openSpans: number
  totalCostUSD: number | null
  totalInputTokens: number
  totalOutputTokens: number
  unpricedSpanCount: number
  partlyPricedSpanCount: number
  startedAt: string
  duration: number
  source: string
  hasErrors: boolean
  errorCount: number
  messages: Message[]
  messageCount: number
  userId?: string
  label?: string
  endedAt?: string
  error?: { message: string; stack?: string; trace_id?: string; span_id?: string }
}
export type Message = {
  messageId: string
  traceId: string
  trace_id?: string
  role: string
  content: string
  redactedContent?: string
  isRedacted: boolean
  createdAt: string
  fullContentStored: boolean
}
export type SessionPage = { sessions: Session[]; total: number; page: number; limit: number; pages: number }
export type SessionSummary = {
  totalSessions: number
  activeSessions: number
  completedSessions: number
  errorSessions: number
  endedSessions: number
  totalCost: number | null
  totalTokens: TokenSums
  unpricedSpanCount: number
  avgDuration: number
}
export type GraphNode = {
  trace_id: string
  id: string
  parentId?: string
  name: string
  type: string
  status: string
  model?: string
  tokens: TokenSums
  costUSD: number | null
  startedAt: string
  duration: number | null
  counted?: boolean
}
type GraphPage = { nodes: GraphNode[]; nextCursor?: string }

export const sessionAt = (id: string): string => `./api/sessions/${named(id)}`
export const graphAt = (id: string, cursor?: string): string =>
  `${sessionAt(id)}/graph${query([['metadata', 'false'], ...(cursor === undefined ? [] : [['cursor', cursor] as [string, string]])])}`

/** Filters of the list, which are parameters of `GET /api/sessions`. */
export const SESSION_FILTERS = ['label', 'userId', 'status', 'source', 'minCost', 'maxCost', 'minSpans', 'maxSpans'] as const
export type SessionFilter = (typeof SESSION_FILTERS)[number]
export const SESSION_ORDERS = ['started', 'cost', 'duration', 'tokens', 'spans'] as const
export type SessionOrder = (typeof SESSION_ORDERS)[number]

/** The filters among *params* as parameters of the API, with the bounds for the start of a session. */
export function filtersOf(params: Params, bounds: { since?: string; until?: string }): [string, string][] {
  const given = SESSION_FILTERS.flatMap((name): [string, string][] => params.all(name).map((value) => [name, value]))
  if (bounds.since !== undefined) given.push(['from', bounds.since])
  if (bounds.until !== undefined) given.push(['to', bounds.until])
  return given
}

/** All spans of a session, each once, by start. */
export async function getNodes(id: string, options: Options): Promise<GraphNode[]> {
  const nodes: GraphNode[] = []
  let cursor: string | undefined
  do {
    const page: GraphPage = await getJson<GraphPage>(graphAt(id, cursor), options)
    for (const node of page.nodes) nodes.push(node)
    cursor = page.nextCursor
  } while (cursor !== undefined)
  return nodes
}
