import { defineConfig } from 'vitest/config'

// Vite's configuration has `root: 'src'`, where vitest finds no tests.
// A busy machine may be slow: a test fails by what it finds, not by how long it takes.
export default defineConfig({ test: { testTimeout: 60_000, include: ['test/**/*.test.ts'] } })
