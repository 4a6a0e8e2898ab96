import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import react from "@vitejs/plugin-react";
import { defineConfig, type Plugin } from "vite";

/** Compresses each text file, so that the server need not, and the binary that embeds them is smaller. */
function gzip(): Plugin {
  return {
    name: "gzip",
    // Of the files as they are written: other plugins change them until then.
    writeBundle({ dir = "dist" }, bundle) {
      for (const name of Object.keys(bundle)) {
        const path = join(dir, name);
        writeFileSync(`${path}.gz`, gzipSync(readFileSync(path), { level: 9 }));
        // Its presence tells the build that the page is there.
        if (name !== "index.html") rmSync(path);
      }
    },
  };
}

export default defineConfig({
  plugins: [react(), gzip()],
  build: {
    target: "es2022",
    // Inlined files would need a wider content security policy.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
  },
  // `WEFT_ADMIN=http://127.0.0.1:9080 npx vite` serves the page from its sources, with the services of a running admin.
  server: {
    proxy: Object.fromEntries(
      ["/session", "^/weft\\.v1\\."].map((path) => [path, { target: process.env.WEFT_ADMIN, changeOrigin: false }]),
    ),
  },
});
