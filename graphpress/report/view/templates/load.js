// The data, and Netron's modules from the text of the installed package.

const read = (id) => JSON.parse(document.getElementById(id).textContent);
const data = read("data"), files = read("library");
const load = (text) => import(URL.createObjectURL(new Blob([text], { type: "text/javascript" })));
const [dagre, grapher] = await Promise.all([load(files.dagre), load(files.grapher)]);
