// The page's side of the engine: starts its thread and turns requests into promises.

export class Engine {
  constructor() {
    this.waiting = new Map();
    this.worker = new Worker(new URL("engine/worker.js", import.meta.url), { type: "module" });
    this.worker.onmessage = ({ data: { id, progress, result, error, kind } }) => {
      const request = this.waiting.get(id);
      if (!request) return;
      if (progress) return request.tell?.(progress);
      this.waiting.delete(id);
      if (error) request.fail(Object.assign(new Error(error), { kind }));
      else request.done(result);
    };
    this.worker.onerror = (event) => this.died(event.message || "the browser started no worker");
  }

  died(why) {
    for (const request of this.waiting.values()) request.fail(Object.assign(new Error(why), { kind: "worker" }));
    this.waiting.clear();
  }

  ask(action, wanted = {}, tell) {
    return new Promise((done, fail) => {
      const id = this.next = (this.next ?? 0) + 1;
      this.waiting.set(id, { done, fail, tell });
      this.worker.postMessage({ id, action, ...wanted });
    });
  }
}
