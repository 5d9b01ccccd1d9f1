// What each metric is called, and what it means in a sentence.

const NAMES: Record<string, [string, string]> = {
  total_cost: ['Cost', 'What all calls cost together. Calls of unknown price are left out and counted beside it.'],
  cost_per_call: ['Cost of a call', 'The mean cost of the calls whose price is known.'],
  unpriced_span_count: ['Unpriced spans', 'Spans whose cost is unknown, so that every sum of money leaves them out.'],
  partly_priced_span_count: ['Partly priced spans', 'Spans of which a part has no price, so that their cost is a lower bound.'],
  prompt_tokens: ['Prompt tokens', 'Tokens that were sent to models, those read from a cache included.'],
  completion_tokens: ['Completion tokens', 'Tokens that models answered with.'],
  total_tokens: ['Tokens', 'Tokens of prompts and completions together.'],
  prompt_token_p50: ['Prompt tokens p50', 'Half of the prompts had at most so many tokens.'],
  prompt_token_p95: ['Prompt tokens p95', '95 of 100 prompts had at most so many tokens.'],
  completion_token_p50: ['Completion tokens p50', 'Half of the answers had at most so many tokens.'],
  completion_token_p95: ['Completion tokens p95', '95 of 100 answers had at most so many tokens.'],
  latency_p50: ['Latency p50', 'Half of the calls took at most so long.'],
  latency_p95: ['Latency p95', '95 of 100 calls took at most so long.'],
  latency_p99: ['Latency p99', '99 of 100 calls took at most so long.'],
  latency_avg: ['Mean latency', 'The mean time that a call took.'],
  ttft_p50: ['First token p50', 'Half of the streamed calls had their first token after at most so long.'],
  ttft_p95: ['First token p95', '95 of 100 streamed calls had their first token after at most so long.'],
  error_rate: ['Error rate', 'The share of calls that failed, timeouts included.'],
  error_count: ['Errors', 'The number of calls that failed, timeouts included.'],
  timeout_rate: ['Timeout rate', 'The share of calls that ended by a timeout.'],
  timeout_count: ['Timeouts', 'The number of calls that ended by a timeout.'],
  span_count: ['Calls', 'The number of calls to models.'],
  quality_score: ['Quality', 'The mean score of the scored spans, from 0 to 1.'],
  quality_p10: ['Quality p10', 'A tenth of the scored spans had at most this score, from 0 to 1.'],
  quality_p50: ['Quality p50', 'Half of the scored spans had at most this score, from 0 to 1.'],
}

/** The title of a metric, and a sentence that says what it is; one of the configuration has its own name and "". */
export function metricName(name: string): { title: string; meaning: string } {
  const found = Object.hasOwn(NAMES, name) ? NAMES[name]! : null
  if (found) return { title: found[0], meaning: found[1] }
  if (name.startsWith('attr.')) return { title: name, meaning: `The numbers in the attribute ${name.slice('attr.'.length)} of spans of all kinds.` }
  if (name.startsWith('eval.')) return { title: name, meaning: `The scores that the evaluation ${name.slice('eval.'.length)} gave.` }
  return { title: name, meaning: '' }
}
