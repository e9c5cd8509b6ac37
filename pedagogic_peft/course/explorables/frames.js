const image = stage.firstChild || stage.appendChild(document.createElement("img"));
image.src = data[at.frame.index];
image.alt = at.frame.value;
return at.frame.value;
