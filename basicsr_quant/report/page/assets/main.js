// Starts everything.

{
  const data = JSON.parse(byId("data").textContent);
  byId("summary").textContent = data.summary;
  startComparison(data);
  fillResults(data);
  startPlots(data);
  startTrainings(data);
  startLayers(data);
  byId("notes").hidden = data.notes.length === 0;
  byId("notes-list").append(...data.notes.map((note) => element("li", {}, note)));
}
