// A candlewick under test: started, watched, stopped and killed.
import { spawn } from "node:child_process";
import net from "node:net";

export async function freePort() {
  const probe = net.createServer();
  await new Promise((listening) => probe.listen(0, "127.0.0.1", listening));
  const { port } = probe.address();
  await new Promise((closed) => probe.close(closed));
  return port;
}

export class Server {
  constructor(binary, port, flags = []) {
    Object.assign(this, { binary, port, flags, origin: `http://127.0.0.1:${port}` });
    this.metrics = `${this.origin}/metrics`;
  }

  async start() {
    const flags = ["serve", "--listen", `127.0.0.1:${this.port}`, ...this.flags];
    const child = spawn(this.binary, flags, { stdio: ["ignore", "pipe", "ignore"] });
    this.process = child;
    process.once("exit", () => child.kill("SIGKILL"));
    this.ended = new Promise((ended) => this.process.once("exit", ended));
    await new Promise((up, down) => {
      this.process.stdout.on("data", (text) => String(text).includes("serves") && up());
      this.process.once("exit", (code) => down(new Error(`the server ended with ${code}`)));
    });
    return this;
  }

  /** Stops it where it stands until it is released. */
  hold() {
    this.held = true;
    this.process.kill("SIGSTOP");
  }

  release() {
    this.held = false;
    this.process.kill("SIGCONT");
  }

  /**
   * Lets it run a twelfth of the time until the returned function is called: whatever the machine, its answers then take so
   * long that something can be done to them.
   */
  slowed() {
    let beat = 0;
    const turn = setInterval(() => {
      beat += 1;
      if (!this.held) this.process.kill(beat % 12 === 0 ? "SIGCONT" : "SIGSTOP");
    }, 5);
    return () => {
      clearInterval(turn);
      if (!this.held) this.process.kill("SIGCONT");
    };
  }

  async kill() {
    this.held = false;
    this.process.kill("SIGKILL");
    await this.ended;
  }

  async stop() {
    if (this.process.exitCode === null && this.process.signalCode === null) await this.kill();
  }

  /** The value of a gauge or counter in the metrics. */
  async metric(name) {
    const text = await (await fetch(this.metrics)).text();
    const line = text.split("\n").find((line) => line.startsWith(`${name}{`) || line.startsWith(`${name} `));
    return Number(line?.split(" ").pop());
  }
}

/** Waits until something holds, for twenty seconds at the most. */
export async function until(what, holds) {
  const end = Date.now() + 20_000;
  while (!(await holds())) {
    if (Date.now() > end) throw new Error(`never happened: ${what}`);
    await new Promise((later) => setTimeout(later, 20));
  }
}
