-- Pages and retention pass over tombstones, of which there may be millions at the old end of a collection.
create index documents_live on documents (collection, place) where data is not null;
