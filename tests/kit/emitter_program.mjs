// A program with the AI SDK of Vercel, which runs in the folder where the SDK is installed.
//
// `node emitter_program.mjs APP CASES`: APP sets the telemetry up and makes the calls of the case `page`; CASES is a JSON
// array of {provider, name, model, fails}.

import { createAnthropic } from '@ai-sdk/anthropic';
import { createOpenAI } from '@ai-sdk/openai';
import { trace } from '@opentelemetry/api';
import { embed, generateText, streamText, tool } from 'ai';
import { z } from 'zod';

const TIMEOUT_MS = 300;
const [app, cases] = [process.argv[2], JSON.parse(process.argv[3])];
// Versions before 7 are told at each call that spans are wanted; version 7 is told once, by the application.
const experimental_telemetry = { isEnabled: true };

const prompt = 'How is the weather in Rome?';
const providers = { openai: createOpenAI(), anthropic: createAnthropic() };

async function use({ provider, name, model }) {
  const maker = providers[provider];
  if (name === 'embeddings') {
    await embed({ model: maker.textEmbeddingModel(model), value: 'weather', maxRetries: 0, experimental_telemetry });
    return;
  }
  const ask = { model: provider === 'openai' ? maker.chat(model) : maker(model), prompt, maxRetries: 0, experimental_telemetry };
  if (name === 'stream') {
    for await (const text of streamText(ask).textStream) if (!text) throw new Error('an empty part');
  } else if (name === 'tools') {
    const weather = tool({ description: 'The weather of a city', inputSchema: z.object({ city: z.string() }) });
    await generateText({ ...ask, tools: { weather } });
  } else if (name === 'timeout') {
    await generateText({ ...ask, abortSignal: AbortSignal.timeout(TIMEOUT_MS) });
  } else {
    await generateText(ask);
  }
}

await import(app);
for (const item of cases) {
  let failed;
  try {
    await use(item);
  } catch (error) {
    failed = error;
  }
  if (Boolean(failed) !== item.fails) throw failed ?? new Error(`${item.name} raised nothing`);
  console.log(`${item.provider} ${item.name}: ${failed ? failed.name : 'ok'}`);
}
await trace.getTracerProvider().getDelegate().forceFlush();
console.log('done');
process.exit(0);
