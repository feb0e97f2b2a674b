// Search on pages opened as files: browsers start no worker from a file, so that the search of the
// theme runs in a hidden frame instead. On a web server this file changes nothing.
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.title = "search";
      // The worker's script answers with its global postMessage.
      window.answerOfSearch = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      frame.srcdoc = `<script>window.postMessage = (data) => parent.answerOfSearch(data)</script>
        <script src="${url}"></script>`;
      this.started = new Promise((resolve) => frame.addEventListener("load", resolve));
      this.frame = frame;
      document.body.append(frame);
    }

    postMessage(data) {
      this.started.then(() => {
        const { contentWindow } = this.frame;
        contentWindow.dispatchEvent(new contentWindow.MessageEvent("message", { data }));
      });
    }
  };
  window.Worker = window.IFrameWorker;
}
