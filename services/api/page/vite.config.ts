import { defineConfig } from 'vite'

// Names carry no hash, or every build would rename the files; the server sends an ETag of the content instead.
export default defineConfig({
  root: 'src',
  base: './',
  oxc: { jsx: { runtime: 'automatic', importSource: 'preact' } },
  build: {
    outDir: '../../tokentrace_api/static',
    emptyOutDir: true,
    modulePreload: false,
    target: 'es2022',
    assetsInlineLimit: 0,
    rolldownOptions: {
      output: { entryFileNames: 'page.js', chunkFileNames: '[name].js', assetFileNames: 'page[extname]' },
    },
  },
  server: { proxy: { '^/(page.json|session|traces|calls|export|metrics|health|openapi.json|docs|values|keys|alerts|reporters|rejected|scores|api|prices)': 'http://127.0.0.1:8700' } },
})
