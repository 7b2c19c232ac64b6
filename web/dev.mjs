// For work on the page: builds it anew at each request for it, and hands all other calls to a running server.
import http from "node:http";

const types = { html: "text/html; charset=utf-8", js: "text/javascript", css: "text/css", svg: "image/svg+xml", txt: "text/plain" };

export async function serve(context, files) {
  const backend = new URL(process.argv.find((argument) => argument.startsWith("http")) ?? "http://127.0.0.1:50051");
  const port = Number(process.env.PORT ?? 5173);
  const server = http.createServer(async (request, response) => {
    const name = request.url === "/" ? "index.html" : request.url.slice(1).split("?")[0];
    if (request.method === "GET" && /^[\w-]+\.(html|js|css|svg|txt)$/.test(name)) {
      try {
        const content = files(await context.rebuild())[name];
        response.writeHead(content ? 200 : 404, { "content-type": types[name.split(".").pop()], "cache-control": "no-store" });
        response.end(content && Buffer.from(content));
      } catch (error) {
        response.writeHead(500).end(String(error));
      }
      return;
    }
    const { hostname, port: to } = backend;
    const call = http.request({ hostname, port: to, path: request.url, method: request.method, headers: request.headers });
    call.on("response", (answer) => {
      response.writeHead(answer.statusCode, answer.headers);
      answer.pipe(response);
      // A call that breaks off breaks off here too.
      answer.on("close", () => answer.complete || response.destroy());
    });
    call.on("error", () => response.destroy());
    response.on("close", () => call.destroy());
    request.pipe(call);
  });
  server.listen(port, "127.0.0.1", () => console.log(`http://127.0.0.1:${port} (calls go to ${backend.href})`));
}
